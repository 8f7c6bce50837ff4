"""A small decoder, a tokenizer and a text to feed it, made by the tests themselves."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, HEADS, VOCABULARY = 64, 2, 320
WORDS = tuple(
    "the a cat dog sat ran on under mat tree and then it saw who was not there".split()  # noqa: SIM905
)


def prose(words: int, seed: int = 0) -> str:
    """Return sentences of a few words, so that some words follow others often."""
    rng = np.random.default_rng(seed)
    out, at = [], 0
    for number in range(words):
        at = (at * 3 + int(rng.integers(0, 4))) % len(WORDS)
        ends = "." * (number % 9 == 8) + "\n" * (number % 27 == 26)
        out.append(WORDS[at] + ends)
    return " ".join(out)


def tokenizer_json(**changes: object) -> str:
    """Return a tokenizer.json: byte-level BPE trained on the prose, ``<s>`` with id 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 8,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([prose(2000, seed=9)], trainer)
    return json.dumps({**json.loads(tokenizer.to_str()), **changes})


def decoder(path: Path, seed: int = 0, batch: int | str = "batch") -> Path:
    """Write a decoder of one block that reads mask, positions and past, as Optimum exports them."""
    rng = np.random.default_rng(seed)
    sizes = {
        "embed": (VOCABULARY, WIDTH),
        "place": (512, WIDTH),
        **{f"w{name}": (WIDTH, WIDTH) for name in "qkvo"},
        "up": (WIDTH, 4 * WIDTH),
        "down": (4 * WIDTH, WIDTH),
        "head": (WIDTH, VOCABULARY),
    }
    weights = {n: rng.normal(0, s[0] ** -0.5, s).astype(np.float32) for n, s in sizes.items()}
    weights["embed"] = rng.normal(size=sizes["embed"]).astype(np.float32)
    weights |= {
        "split": np.array([0, 0, HEADS, WIDTH // HEADS]),
        "joined": np.array([0, 0, WIDTH]),
        "root": np.float32((WIDTH // HEADS) ** -0.5),
        "never": np.float32(-1e4),
        "zero": np.array(0),
        "one": np.array(1),
        "axes12": np.array([1, 2]),
        "axes1": np.array([1]),
        "axes2": np.array([2]),
    }
    nodes = [*_embedding(), *_attention(), *_rest()]
    past = [batch, HEADS, "past_sequence_length", WIDTH // HEADS]
    present = [batch, HEADS, "total_sequence_length", WIDTH // HEADS]
    tokens = [batch, "sequence_length"]
    integers, floats = TensorProto.INT64, TensorProto.FLOAT
    inputs = [("input_ids", integers, tokens)]
    inputs += [("attention_mask", integers, [batch, "total_sequence_length"])]
    inputs += [("position_ids", integers, tokens)]
    inputs += [(f"past_key_values.0.{kind}", floats, past) for kind in ("key", "value")]
    outputs = [("logits", floats, [*tokens, VOCABULARY])]
    outputs += [(f"present.0.{kind}", floats, present) for kind in ("key", "value")]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info(*port) for port in inputs],
        [helper.make_tensor_value_info(*port) for port in outputs],
        [numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def _embedding() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Gather", ["embed", "input_ids"], ["named"]),
        helper.make_node("Gather", ["place", "position_ids"], ["placed"]),
        helper.make_node("Add", ["named", "placed"], ["x"]),
    ]


def _attention() -> list[onnx.NodeProto]:
    nodes = []
    for name in "qkv":
        nodes += [
            helper.make_node("MatMul", ["x", f"w{name}"], [f"{name}0"], f"project_{name}"),
            helper.make_node("Reshape", [f"{name}0", "split"], [f"{name}1"]),
            helper.make_node("Transpose", [f"{name}1"], [f"{name}2"], perm=[0, 2, 1, 3]),
        ]
    for name, kind in (("k", "key"), ("v", "value")):
        nodes.append(
            helper.make_node(
                "Concat", [f"past_key_values.0.{kind}", f"{name}2"], [f"present.0.{kind}"], axis=2
            )
        )
    return [
        *nodes,
        helper.make_node("Transpose", ["present.0.key"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q2", "kt"], ["scores0"]),
        helper.make_node("Mul", ["scores0", "root"], ["scores"]),
        # a key is seen where the mask says so, up to the query's own position
        helper.make_node("Shape", ["attention_mask"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "one"], ["total"]),
        helper.make_node("Range", ["zero", "total", "one"], ["keys"]),
        helper.make_node("Unsqueeze", ["position_ids", "axes2"], ["queries"]),
        helper.make_node("LessOrEqual", ["keys", "queries"], ["earlier3"]),
        helper.make_node("Unsqueeze", ["earlier3", "axes1"], ["earlier"]),
        helper.make_node("Cast", ["attention_mask"], ["real2"], to=TensorProto.BOOL),
        helper.make_node("Unsqueeze", ["real2", "axes12"], ["real"]),
        helper.make_node("And", ["earlier", "real"], ["seen"]),
        helper.make_node("Where", ["seen", "scores", "never"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "present.0.value"], ["heads"]),
        helper.make_node("Transpose", ["heads"], ["heads1"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["heads1", "joined"], ["heads2"]),
        helper.make_node("MatMul", ["heads2", "wo"], ["attended"], "project_o"),
    ]


def _rest() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Add", ["x", "attended"], ["y"]),
        helper.make_node("MatMul", ["y", "up"], ["h"], "up"),
        helper.make_node("Relu", ["h"], ["h1"]),
        helper.make_node("MatMul", ["h1", "down"], ["h2"], "down"),
        helper.make_node("Add", ["y", "h2"], ["z"]),
        helper.make_node("MatMul", ["z", "head"], ["logits"], "head"),
    ]

"""A small Llama as onnxruntime-genai's model builder writes it, and what that runtime generates.

It runs under any interpreter that has onnxruntime-genai; ``make`` needs torch and transformers too.
Nothing is downloaded: weights are random, the tokenizer is trained on this project's licence.

usage: python genai.py make FOLDER [--precision fp32|fp16]
       python genai.py generate FOLDER OUT.npz [--follow OTHER.npz]
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

TEXT = Path(__file__).resolve().parents[2] / "LICENSE"
WORDS = 512
SPECIAL = ["<unk>", "<s>", "</s>"]
PROMPTS, PROMPT_LENGTH, NEW = 4, 12, 24


def make(folder: Path, precision: str = "fp32") -> Path:
    """Write the model with its configuration and tokenizer; return the folder."""
    with tempfile.TemporaryDirectory() as source:
        _write_tokenizer(source)
        _write_llama(source)
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-e", "cpu"]
        where = ["-i", source, "-o", str(folder), "-c", source, "-p", precision]
        subprocess.run([*builder, *where], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return folder


def _write_tokenizer(folder: str) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(TEXT)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2]
    ).save_pretrained(folder)


def _write_llama(folder: str) -> None:
    """Write random weights, but give each token one that follows it.

    The head is the embedding, permuted: the greedy choice then has a margin. Among the logits of a
    wholly random model the first two are so close that any rounding swaps them. Special tokens
    follow none, so that no text ends.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.08,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        architectures=["LlamaForCausalLM"],
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        words = model.model.embed_tokens.weight
        words.normal_(std=1.5)
        before = len(SPECIAL) + torch.randperm(WORDS - len(SPECIAL))
        model.lm_head.weight.zero_()
        model.lm_head.weight[len(SPECIAL) :] = words[before] / 10
    model.save_pretrained(folder)


def generate(folder: Path, follow: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Continue a few prompts greedily, or along given tokens.

    Args:
        folder: Has the model and its genai_config.json.
        follow: Tokens ``(PROMPTS, NEW)`` that are appended instead of the model's own choices.

    Returns:
        ``tokens``, the model's choices, ``(PROMPTS, NEW)``; ``logits`` behind each of them,
        ``(PROMPTS, NEW, WORDS)``.
    """
    import onnxruntime_genai as genai

    model = genai.Model(str(folder))
    prompts = np.random.default_rng(0).integers(len(SPECIAL), WORDS, (PROMPTS, PROMPT_LENGTH))
    found = [
        _continued(genai, model, prompt, None if follow is None else follow[i])
        for i, prompt in enumerate(prompts)
    ]
    logits = np.stack(found)
    return {"tokens": logits.argmax(-1), "logits": logits}


def _continued(genai: Any, model: Any, prompt: np.ndarray, follow: np.ndarray | None) -> np.ndarray:
    """Return the logits behind each new token, ``(NEW, WORDS)``: a prefill, then one at a time."""
    params = genai.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=PROMPT_LENGTH + NEW + 1)
    generator = genai.Generator(model, params)
    generator.append_tokens(prompt.astype(np.int32))
    rows = []
    for step in range(NEW):
        rows.append(np.array(generator.get_logits(), np.float32).reshape(-1, WORDS)[-1])
        if follow is None:
            generator.generate_next_token()
        else:
            generator.append_tokens(follow[step : step + 1].astype(np.int32))
    return np.stack(rows)


def main() -> None:
    """Parse, then make or generate."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    maker = verbs.add_parser("make")
    maker.add_argument("folder", type=Path)
    maker.add_argument("--precision", choices=("fp32", "fp16"), default="fp32")
    runner = verbs.add_parser("generate")
    runner.add_argument("folder", type=Path)
    runner.add_argument("out", type=Path)
    runner.add_argument("--follow", type=Path)
    options = parser.parse_args()
    if options.verb == "make":
        make(options.folder, options.precision)
        return
    follow = None
    if options.follow:
        with np.load(options.follow, allow_pickle=False) as file:
            follow = file["tokens"]
    np.savez(options.out, allow_pickle=False, **generate(options.folder, follow))


if __name__ == "__main__":
    main()

"""Hugging Face folders (config.json and safetensors) as torch modules with inputs to trace them on.

Decoders get past keys and values as inputs and outputs, named as Optimum and onnxruntime-genai do:
``past_key_values.N.key``, ``present.N.key``. Code that a folder brings is never run.
"""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

from qcompile.errors import ModelError, RuntimeMissingError
from qcompile.progress import Progress
from qcompile.source.torch_export import TorchModel
from qcompile.source.torch_inputs import Inputs
from qcompile.source.torch_library import hushed, torch_library

TOKENIZER = "tokenizer.json"
BATCH, LENGTH, PAST = "batch", "sequence_length", "past_sequence_length"
TOTAL = f"{PAST} + {LENGTH}"

_MOST_CONFIG = 1 << 22
_EXAMPLE = (2, 5)
"""Rows and tokens of the example."""
_PAST_TOKENS = 3
_TRIED = 17
"""The longest text and past that the comparison tries."""


def hugging_face_model(name: str, folder: Path, progress: Progress) -> TorchModel:
    """Return the module of a folder, in float32, and made-up inputs to trace it on.

    Args:
        name: As the user gave it.
        folder: Holds config.json and ``.safetensors``, and tokenizer.json for models of text.
        progress: Hears what was converted and what is missing.

    Raises:
        RuntimeMissingError: transformers is not installed.
        ModelError: The folder lacks a file, needs code of its own, is quantized, or holds a kind of
            model that needs a function of the user's.
    """
    config = _checked_config(name, folder)
    transformers = _transformers()
    module = _loaded(name, folder, config, transformers)
    if config.get("auto_map"):
        progress.notice(
            f"{name}: brings code of its own, which is never run: transformers' own "
            f"{type(module).__name__} is traced"
        )
    if config.get("dtype", config.get("torch_dtype", "float32")) != "float32":
        progress.notice(f"{name}: its weights are made float32 for tracing")
    if module.config.is_encoder_decoder:
        raise ModelError(
            f"{name}: is an encoder and a decoder in one; trace them as two models with functions "
            "of your own (module:callable)"
        )
    tokenizer: Path | None = folder / TOKENIZER
    if tokenizer is not None and not tokenizer.is_file():
        tokenizer = None
        if module.main_input_name == "input_ids":
            progress.notice(f"{name}: has no {TOKENIZER}; text needs --tokenizer")
    if module.can_generate():
        return _decoder(name, module, tokenizer)
    return _encoder(name, module, tokenizer)


def _transformers() -> ModuleType:
    torch_library()
    try:
        with hushed():
            import transformers
    except ImportError as error:
        raise RuntimeMissingError(
            f"hf: needs transformers ({error}): pip install 'qcompile[hf]'"
        ) from error
    return transformers  # type: ignore[no-any-return, unused-ignore]


def _checked_config(name: str, folder: Path) -> dict[str, Any]:
    """Read config.json and look for what cannot be traced, before any weight is read."""
    path = folder / "config.json"
    try:
        if path.stat().st_size > _MOST_CONFIG:
            raise ModelError(f"{path}: is larger than any config")
        config = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ModelError(f"{name}: {path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is no JSON ({error})") from error
    if not isinstance(config, dict) or not config.get("model_type"):
        raise ModelError(f"{path}: names no model_type; it is no config of transformers")
    if config.get("quantization_config"):
        raise ModelError(f"{name}: is quantized already; give the folder of the float model")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{name}: has no .safetensors; save it so (model.save_pretrained): other weights are "
            "pickles, which are not loaded"
        )
    return config


def _loaded(name: str, folder: Path, config: dict[str, Any], transformers: ModuleType) -> Any:  # noqa: ANN401
    architecture = (config.get("architectures") or ["(none)"])[0]
    with hushed():  # transformers imports what it needs when a name is asked for
        kind = getattr(transformers, str(architecture), None)
    known = getattr(getattr(kind, "config_class", None), "model_type", None)
    if kind is None or known != config["model_type"]:
        raise ModelError(
            f"{name}: transformers {transformers.__version__} has no {architecture} of type "
            f"{config['model_type']}; code that a model brings is never run: name a function of "
            "yours that makes it (module:callable)"
        )
    try:
        with hushed():
            module, found = kind.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch_library().float32,
                attn_implementation="eager",
                output_loading_info=True,
            )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{name}: transformers cannot load it: {reason}") from error
    absent = sorted(found["missing_keys"])
    if absent:
        raise ModelError(f"{name}: lacks {len(absent)} weights of {architecture}, as {absent[0]}")
    return module.eval()


def _tokens(module: Any) -> Any:  # noqa: ANN401
    torch = torch_library()
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, module.config.vocab_size, _EXAMPLE, generator=generator)


def _longest(module: Any) -> int:  # noqa: ANN401
    return min(_TRIED, int(getattr(module.config, "max_position_embeddings", None) or _TRIED))


def _parameters(module: Any) -> set[str]:  # noqa: ANN401
    import inspect

    return {*inspect.signature(module.forward).parameters}


def _encoder(name: str, module: Any, tokenizer: Path | None) -> TorchModel:  # noqa: ANN401
    torch, config = torch_library(), module.config
    module.config.use_cache = False
    ranges = {BATCH: (1, 3)}
    if module.main_input_name == "input_ids":
        tokens = _tokens(module)
        given = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if getattr(config, "type_vocab_size", 0) > 1:
            given["token_type_ids"] = torch.zeros_like(tokens)
        given = {key: value for key, value in given.items() if key in _parameters(module)}
        axes = {key: {0: BATCH, 1: LENGTH} for key in given}
        ranges[LENGTH] = 1, _longest(module)
    elif module.main_input_name == "pixel_values" and isinstance(config.image_size, int):
        shape = _EXAMPLE[0], getattr(config, "num_channels", 3), config.image_size
        generator = torch.Generator().manual_seed(0)
        given = {"pixel_values": torch.randn(*shape, config.image_size, generator=generator)}
        axes = {"pixel_values": {0: BATCH}}
    else:
        raise ModelError(
            f"{name}: takes {module.main_input_name}; name a function that returns the module and "
            "example inputs (module:callable)"
        )
    return TorchModel(
        name, module, Inputs.of(module, given, name), axes, ranges, tokenizer=tokenizer
    )


def _decoder(name: str, module: Any, tokenizer: Path | None) -> TorchModel:  # noqa: ANN401
    torch = torch_library()
    tokens = _tokens(module)
    rows, length = tokens.shape
    with torch.no_grad(), hushed():
        try:
            layers = module(input_ids=tokens, use_cache=True).past_key_values.layers
            shapes = [(layer.keys.shape, layer.values.shape) for layer in layers]
        except (AttributeError, TypeError) as error:
            raise ModelError(
                f"{name}: {type(module).__name__} keeps no keys and values of each layer as its "
                "past; name a function that returns a module and example inputs (module:callable)"
            ) from error
    total = _PAST_TOKENS + length
    given: dict[str, Any] = {
        "input_ids": tokens,
        "attention_mask": torch.ones(rows, total, dtype=torch.int64),
    }
    axes: dict[str, dict[int, str]] = {
        "input_ids": {0: BATCH, 1: LENGTH},
        "attention_mask": {0: BATCH, 1: TOTAL},
    }
    if "position_ids" in _parameters(module):
        given["position_ids"] = torch.arange(_PAST_TOKENS, total).repeat(rows, 1)
        axes["position_ids"] = {0: BATCH, 1: LENGTH}
    generator = torch.Generator().manual_seed(0)
    given["past_key_values"] = [
        {
            part: torch.randn(*shape[:2], _PAST_TOKENS, *shape[3:], generator=generator)
            for part, shape in zip(("key", "value"), pair, strict=True)
        }
        for pair in shapes
    ]
    for index in range(len(shapes)):
        for part in ("key", "value"):
            axes[f"past_key_values.{index}.{part}"] = {0: BATCH, 2: PAST}
    longest = _longest(module)
    ranges = {BATCH: (1, 3), LENGTH: (1, max(1, longest // 2)), PAST: (0, longest // 2)}
    wrapped = _with_past(module)
    return TorchModel(
        name, wrapped, Inputs.of(wrapped, given, name), axes, ranges, tokenizer=tokenizer
    )


def _with_past(module: Any) -> Any:  # noqa: ANN401
    """Return a module whose past is a list of keys and values, in place of a cache object."""
    torch = torch_library()
    from transformers.cache_utils import DynamicCache

    class Decoder(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(
            self,
            input_ids: Any,  # noqa: ANN401
            attention_mask: Any,  # noqa: ANN401
            position_ids: Any = None,  # noqa: ANN401
            past_key_values: Any = (),  # noqa: ANN401
        ) -> dict[str, Any]:
            cache = DynamicCache()
            for index, layer in enumerate(past_key_values):
                cache.update(layer["key"], layer["value"], index)
            placed = {} if position_ids is None else {"position_ids": position_ids}
            found = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                past_key_values=cache,
                use_cache=True,
                **placed,
            )
            present = [
                {"key": layer.keys, "value": layer.values} for layer in found.past_key_values.layers
            ]
            return {"logits": found.logits, "present": present}

    return Decoder().eval()

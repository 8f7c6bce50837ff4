"""Reads the list of layers that TensorRT's builder logs at its end, when asked to be verbose.

One line a layer, ``Name: ..., LayerType: ..., Inputs: [ { Name: ..., Dimensions: ..., Datatype: ...
}], Constants: [...], Outputs: [...], TacticName: ..., Metadata: ...``, as EngineInspector would
print it; found on TensorRT for RTX 1.7.1. No GPU and no loaded engine is needed for it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

from qcompile.errors import EngineError

HEADING = "Layers:\n"
"""What the message that holds the list begins with."""

_LISTS = ("Inputs", "Constants", "Outputs")
_LAST = "Metadata"
_NEXT_FIELD = re.compile(r", (?=[A-Z]\w*: )")
_TYPE = re.compile(r"Datatype: (\w+)")
_ONNX = re.compile(r"^\[ONNX Layer: (.*)\]$", re.DOTALL)
_SEPARATOR = "\x1f"
_WORDS = {
    "Float": "fp32",
    "Half": "fp16",
    "BFloat16": "bf16",
    "Int8": "int8",
    "UInt8": "uint8",
    "Int4": "int4",
    "FP8": "fp8",
    "FP4E2M1": "fp4",
    "Int32": "int32",
    "Int64": "int64",
    "Bool": "bool",
}


@dataclass(frozen=True)
class EngineTensor:
    """What a layer reads or writes.

    Attributes:
        name: The builder's name of it; that of the ONNX graph only for the engine's own ports.
        dtype: ``fp32``, ``fp16``, ``bf16``, ``fp8``, ``int8``, ``int4`` and so on; a type that is
            not known here is given as the log has it.
        shape: -1 where it is not fixed.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class EngineLayer:
    """One kernel of an engine.

    Attributes:
        name: The builder's name of it.
        kind: The builder's word: ``correlation`` (a convolution), ``gemm``, ``kgen`` (a generated
            kernel, mostly elementwise), ``runtime_fusion`` and others.
        nodes: Names of the ONNX nodes it stands for, as the parser knows them.
        inputs: What it reads.
        constants: Weights, scales and the like. Those that another kernel prepares are inputs.
        outputs: What it writes.
        tactic: The kernel's name; empty where the log has none.
    """

    name: str
    kind: str
    nodes: tuple[str, ...] = ()
    inputs: tuple[EngineTensor, ...] = ()
    constants: tuple[EngineTensor, ...] = ()
    outputs: tuple[EngineTensor, ...] = ()
    tactic: str = ""


def parse_layers(message: str) -> tuple[EngineLayer, ...]:
    """Return the layers that a log message lists.

    Args:
        message: All of it, from ``HEADING`` on.

    Raises:
        EngineError: It is no such list, or has another form than the one known.
    """
    head, found, body = message.partition(HEADING)
    if not found or head:
        raise _strange("no heading", message)
    lines = takewhile(bool, body.split("\n"))  # further sections follow an empty line
    return tuple(_layer(line) for line in lines)


def _layer(line: str) -> EngineLayer:
    cursor = _Cursor(line)
    cursor.expect("Name: ")
    name = cursor.until(", LayerType: ")
    kind = cursor.value()
    texts: dict[str, str] = {}
    tensors: dict[str, tuple[EngineTensor, ...]] = {}
    while not cursor.at_end():
        key = cursor.until(": ")
        if key in _LISTS:
            tensors[key] = tuple(cursor.tensors())
            cursor.skip(", ")
        else:
            texts[key] = cursor.rest() if key == _LAST else cursor.value()
    return EngineLayer(
        name=name,
        kind=kind,
        nodes=_nodes(texts.get(_LAST, "")),
        inputs=tensors.get("Inputs", ()),
        constants=tensors.get("Constants", ()),
        outputs=tensors.get("Outputs", ()),
        tactic=texts.get("TacticName", ""),
    )


class _Cursor:
    """Walks along one line. Names may hold commas and brackets, so there is no splitting first."""

    def __init__(self, line: str) -> None:
        self._line = line
        self._at = 0

    def at_end(self) -> bool:
        """Return whether all has been read."""
        return self._at >= len(self._line)

    def until(self, mark: str) -> str:
        """Read up to the mark, and past it."""
        end = self._line.find(mark, self._at)
        if end < 0:
            raise _strange(f"no {mark!r} where one belongs", self._line)
        text, self._at = self._line[self._at : end], end + len(mark)
        return text

    def value(self) -> str:
        """Read up to the next field, and past the comma before it."""
        end = _NEXT_FIELD.search(self._line, self._at)
        if end is None:
            return self.rest()
        text, self._at = self._line[self._at : end.start()], end.end()
        return text

    def rest(self) -> str:
        """Read to the end."""
        text, self._at = self._line[self._at :], len(self._line)
        return text

    def skip(self, mark: str) -> bool:
        """Read the mark if it comes next; return whether it did."""
        there = self._line.startswith(mark, self._at)
        self._at += len(mark) if there else 0
        return there

    def expect(self, mark: str) -> None:
        """Read the mark, which must come next."""
        if not self.skip(mark):
            raise _strange(f"no {mark!r} where one belongs", self._line)

    def tensors(self) -> Iterator[EngineTensor]:
        """Read a list of tensors."""
        self.expect("[")
        while self.skip(" { Name: "):
            name = self.until(", Dimensions: [")
            shape = self._shape(self.until("]"))
            dtype = _TYPE.search(self.until(" }"))
            if dtype is None:
                raise _strange("a tensor without Datatype", self._line)
            yield EngineTensor(name, _WORDS.get(dtype[1], dtype[1]), shape)
            self.skip(",")
        self.expect("]")

    def _shape(self, text: str) -> tuple[int, ...]:
        try:
            return tuple(int(size) for size in text.split(",") if size)
        except ValueError:
            raise _strange(f"dimensions [{text}]", self._line) from None


def _nodes(metadata: str) -> tuple[str, ...]:
    """Return the nodes that are named, in order and once each."""
    entries = (_ONNX.match(entry) for entry in metadata.split(_SEPARATOR))
    return tuple(dict.fromkeys(entry[1] for entry in entries if entry))


def _strange(what: str, text: str) -> EngineError:
    shown = text if len(text) <= 120 else text[:117] + "..."
    return EngineError(
        f"the list of layers in TensorRT's log has a form that is not known ({what}): {shown!r}; "
        "known is that of TensorRT for RTX 1.7"
    )

"""Execution providers of ONNX Runtime: who runs the nodes of a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Provider:
    """One that is meant, and those that take what it leaves.

    Attributes:
        chain: Names in ONNX Runtime with their options, the one that is meant first.
        entries: Configuration entries of the session.
        rewrites: ONNX Runtime optimizes the graph before the provider sees it.
    """

    chain: tuple[tuple[str, Mapping[str, str]], ...]
    entries: Mapping[str, str] = field(default_factory=dict)
    rewrites: bool = True

    @property
    def name(self) -> str:
        """Name of the one that is meant."""
        return self.chain[0][0]


CPU = Provider((("CPUExecutionProvider", {}),))


@dataclass(frozen=True)
class Engine:
    """A model file that ONNX Runtime runs, and who runs it."""

    path: Path
    provider: Provider = CPU

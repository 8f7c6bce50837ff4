"""Runs passes, one after another, and keeps a record of each."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qcompile.errors import PassError, QcompileError
from qcompile.graph.dump import dump
from qcompile.graph.protocol import Fact, GraphPass, check_order


@dataclass(frozen=True)
class PassRun:
    """What one pass did, for the report."""

    name: str
    options: dict[str, Any]
    modified: bool
    seconds: float
    nodes_before: int
    nodes_after: int
    refusals: dict[str, int]


def run_passes(
    model: ir.Model,
    passes: list[GraphPass],
    *,
    holds: frozenset[Fact] = frozenset(),
    dump_dir: Path | None = None,
    paranoid: bool = False,
) -> list[PassRun]:
    """Run the passes in order, in place.

    Args:
        model: The graph to rewrite.
        passes: In the order to run; checked against their facts first.
        holds: Facts that hold already.
        dump_dir: Write the graph's text after each pass to ``NN-name.txt`` here.
        paranoid: Compare dumps, so that a wrong ``modified`` is an error.

    Raises:
        PassError: The order is wrong, or a pass failed or lied.
    """
    check_order(passes, holds)
    runs = []
    for number, step in enumerate(passes, 1):
        text_before = dump(model) if paranoid else ""
        nodes_before = model.graph.num_nodes()
        started = time.perf_counter()
        try:
            modified = step(model).modified
        except QcompileError:
            raise
        except Exception as error:
            raise PassError(f"pass {step.name} failed: {error.__cause__ or error}") from error
        if paranoid and modified != (dump(model) != text_before):
            raise PassError(f"pass {step.name} says modified={modified}, its graph disagrees")
        runs.append(
            PassRun(
                name=step.name,
                options=step.options(),
                modified=modified,
                seconds=time.perf_counter() - started,
                nodes_before=nodes_before,
                nodes_after=model.graph.num_nodes(),
                refusals=dict(step.refusals),
            )
        )
        if dump_dir is not None:
            dump_dir.mkdir(parents=True, exist_ok=True)
            (dump_dir / f"{number:02d}-{step.name}.txt").write_text(dump(model), "utf-8")
    return runs

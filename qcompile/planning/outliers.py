"""Which columns of which layers stay out of the codes (LLM.int8(), arXiv:2208.07339)."""

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from qcompile.errors import RecipeError
from qcompile.graph.outlier_parts import outlier_parts
from qcompile.graph.walk import is_constant, is_op
from qcompile.graph.work import multiply_adds
from qcompile.numerics.outliers import outlier_columns
from qcompile.planning.column_rows import ColumnRows, column_rows
from qcompile.progress import Progress
from qcompile.remedies import Outliers, Remedies
from qcompile.samples import Samples

MANY = 0.25
"""Share of a layer's columns beyond which the threshold does not tell outliers from the others."""

FLOAT = "outlier columns (LLM.int8())"
"""Why the nodes around a split product stay in float."""

RUN_TIME_TARGETS = ("ort-cpu",)
"""Targets with 8-bit activations on which a number of columns that only the run tells was tried and
works. TensorRT for RTX has no NonZero."""


def check_run_time(target: str) -> None:
    """Refuse outliers that are found at run time where they cannot be.

    Raises:
        RecipeError: The target is not one of ``RUN_TIME_TARGETS``.
    """
    if target not in RUN_TIME_TARGETS:
        raise RecipeError(
            f"outlier columns cannot be found at run time on {target}: their number differs from "
            f"run to run, which only {' and '.join(RUN_TIME_TARGETS)} is known to take; leave the "
            "option out and they are found on --calib"
        )


@dataclass(frozen=True)
class OutlierLayer:
    """What the report says of one split layer.

    Attributes:
        node: Its name.
        channels: The columns that it multiplies in float; none where they are found at run time.
        columns: That its input has.
        run_time: They are found at run time.
        share: Of the layer's multiply-adds that are done in float; None where it is not known.
        of_model: Of those of all layers with weights.
    """

    node: str
    channels: tuple[int, ...]
    columns: int
    run_time: bool
    share: float | None
    of_model: float | None


def outlier_channels(  # noqa: PLR0913 (what is looked at, and what is asked for)
    model: ir.Model,
    nodes: Collection[str],
    samples: Samples,
    jobs: int,
    progress: Progress,
    *,
    threshold: float,
    share: float | None,
    run_time: bool,
) -> dict[str, Outliers]:
    """Find the outlier columns of layers on samples.

    Args:
        model: The float graph.
        nodes: Layers that may be split: those that would compute on codes. Others than MatMul and
            Gemm with a constant matrix are passed over.
        samples: For the magnitudes.
        jobs: Samples run at once.
        progress: Hears "plan: rows", and of layers with too many outliers.
        threshold: Magnitude from which a column is an outlier, if any sample reaches it.
        share: Take the loudest share of columns of each layer instead.
        run_time: Columns are found anew for each input, by the threshold, or by the magnitude from
            which they belong to the share on these samples. Layers without an outlier on the
            samples count, too: other inputs may have some.

    Returns:
        Node to its outliers, in graph order. A layer without any is not in it, nor one where the
        threshold takes more than ``MANY`` of the columns.
    """
    layers = {str(n.name): n for n in model.graph if n.name in nodes and _input_columns(n)}
    inputs = {name: node.inputs[0].name or "" for name, node in layers.items()}  # type: ignore[union-attr]
    columns = {inputs[name]: _input_columns(node) for name, node in layers.items()}
    if not columns:
        return {}
    seen = column_rows(model, columns, samples, 1, jobs, progress)
    found, crowded = {}, []
    for name in layers:
        outliers = _outliers(seen[inputs[name]], threshold, share, run_time=run_time)
        if share is None and len(outliers.channels) > MANY * outliers.columns:
            crowded.append(name)
        elif run_time:
            found[name] = outliers.model_copy(update={"channels": []})
        elif outliers.channels:
            found[name] = outliers
    if crowded:
        progress.notice(
            f"LLM.int8(): layers left as they are: {len(crowded)} ({', '.join(crowded[:3])}); more "
            f"than {MANY:.0%} of their columns reach the threshold {threshold:g}: raise it, or say "
            "which share of columns to take"
        )
    return found


def float_nodes(model: ir.Model, remedies: Remedies) -> dict[str, str]:
    """Return the nodes of a split graph that must stay in float, with the reason.

    Args:
        model: The graph behind ``passes/split_outliers.py``.
        remedies: What it was given.
    """
    split = [node for node in model.graph if node.name in remedies.outliers]
    return {str(part.name): FLOAT for node in split for part in outlier_parts(node)}


def outlier_layers(model: ir.Model, remedies: Remedies) -> list[OutlierLayer]:
    """Return the split layers in graph order, with the share of the work that is done in float.

    Args:
        model: The lowered graph, split or not.
        remedies: What it is or will be given.
    """
    extra = {
        id(part) for n in model.graph if n.name in remedies.outliers for part in outlier_parts(n)
    }
    work = {str(n.name): multiply_adds(n) for n in model.graph if id(n) not in extra}
    total = sum(work.values())
    found = []
    for name in (name for name in work if name in remedies.outliers):
        one = remedies.outliers[name]
        share = None if one.run_time else len(one.channels) / one.columns
        of_model = None if share is None or not total else share * work[name] / total
        channels = tuple(one.channels)
        found.append(OutlierLayer(name, channels, one.columns, one.run_time, share, of_model))
    return found


def _outliers(
    seen: ColumnRows, threshold: float, share: float | None, *, run_time: bool
) -> Outliers:
    maxima = seen.magnitude()
    channels, limit = outlier_columns(maxima, threshold, share)
    return Outliers(channels=channels, columns=len(maxima), threshold=limit, run_time=run_time)


def _input_columns(node: ir.Node) -> int:
    """Return the columns of the input of a layer that can be split; 0 for other nodes."""
    if not is_op(node, "MatMul", "Gemm"):
        return 0
    x, weight = node.inputs[:2]
    matrix = None if weight is None or not is_constant(weight) else weight.const_value
    if matrix is None or len(matrix.shape) != 2 or node.attributes.get_int("transA", 0) == 1:
        return 0
    if x is None or is_constant(x) or x.shape is None or len(x.shape) < 2:
        return 0
    return int(matrix.shape.numpy()[node.attributes.get_int("transB", 0)])

"""Running a graph as it is written, so that a pass is judged and not ONNX Runtime's optimizer."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from hypothesis import note

from qcompile.graph.dump import dump
from qcompile.graph.protocol import Fact, GraphPass
from qcompile.passes.infer_shapes import InferShapes
from qcompile.passes.name_values import NameValues

Arrays = dict[str, np.ndarray]


def session(model: ir.Model | onnx.ModelProto | str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    source = proto if isinstance(proto, str) else proto.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def random_feeds(model: ir.Model, seed: int = 0, dims: dict[str, int] | None = None) -> Arrays:
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.inputs:
        shape = [
            d if isinstance(d, int) else (dims or {}).get(str(d), 2) for d in value.shape or ()
        ]
        dtype = value.dtype.numpy() if value.dtype else np.float32
        if np.issubdtype(dtype, np.floating):
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
        else:
            feeds[value.name] = rng.integers(0, 2, shape).astype(dtype)
    return feeds


def relative_l2(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """The largest relative L2 distance of the outputs; shapes and types must be equal."""
    worst = 0.0
    for left, right in zip(a, b, strict=True):
        assert left.shape == right.shape
        assert left.dtype == right.dtype
        x, y = left.astype(np.float64), right.astype(np.float64)
        norm = np.linalg.norm(x)
        worst = max(
            worst, float(np.linalg.norm(x - y) / norm) if norm else float(np.linalg.norm(y))
        )
    return worst


def prepared(model: ir.Model, step: GraphPass) -> ir.Model:
    """Give the model the facts that the pass needs."""
    if Fact.NAMED in step.needs:
        NameValues()(model)
    if Fact.TYPED in step.needs:
        InferShapes()(model)
    return model


def check_equivalent(model: ir.Model, step: GraphPass, *, changes: bool | None = None) -> ir.Model:
    """Run the pass and demand that outputs stay within its effect; return the new model."""
    prepared(model, step)
    note(dump(model))
    feeds = random_feeds(model)
    before = session(model).run(None, feeds)
    modified = step(model).modified
    assert changes is None or modified == changes, dict(step.refusals)
    note(dump(model))
    assert relative_l2(before, session(model).run(None, feeds)) <= step.effect.value
    return model

"""Measured on samples: how large a graph's numbers get, and what rounding to halves does to a node.

Beside each node stands a copy that reads its inputs rounded to the half type and rounds its output;
both see the float run's values, so an error is the node's own. Only scalars leave the runtime.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import add_constant
from qcompile.graph.halves import FLOAT16, MOVES, Half, is_float32, newest_slots
from qcompile.graph.walk import is_constant, is_op
from qcompile.planning.extra_nodes import ExtraNodes
from qcompile.progress import Progress
from qcompile.runtime.ort import Session
from qcompile.samples import Samples

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MEANS = ("AveragePool", "GlobalAveragePool", "ReduceMean")
SUMS = ("CumSum", "ReduceL1", "ReduceSum")
SQUARES = ("ReduceL2", "ReduceSumSquare")
SOFTMAXES = ("LogSoftmax", "Softmax")
NORMS = ("InstanceNormalization", "LayerNormalization", "RMSNormalization")
_UNREPEATABLE = (
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)
_RESHAPING = ("Compress", "NonZero", "Unique")
"""Rounded numbers can give outputs of another shape, which cannot be compared."""

_UNMEASURED = (
    "Constant",
    "ConstantOfShape",
    "DequantizeLinear",
    "QuantizeLinear",
    *_RESHAPING,
    *_UNREPEATABLE,
)


STAGE = "plan: half precision"


@dataclass(frozen=True)
class Figures:
    """What the samples show; a key is missing where a figure does not apply.

    Attributes:
        largest: Value name to its largest finite magnitude.
        sums: Node name to the largest sum of magnitudes (of squares in norms) that it forms.
        terms: Node name to the number of terms of its longest sum.
        variances: Node name to the smallest variance that it divides by.
        errors: Node name to the relative L2 error of its outputs; of integers, the share that
            differ.
    """

    largest: dict[str, float]
    sums: dict[str, float]
    terms: dict[str, float]
    variances: dict[str, float]
    errors: dict[str, float]


def figures(
    model: ir.Model, half: Half, samples: Samples, order: Sequence[int], jobs: int, watch: Progress
) -> Figures:
    """Run all samples for what is largest, and some of them with every node rounded alone.

    Args:
        model: The float graph, typed and named; it is not changed.
        half: The type asked for.
        samples: What to run.
        order: Those that errors are measured on, in the order in which their sums are taken.
        jobs: Samples measured at once.
        watch: Hears "plan: half precision".
    """
    probe = _Probe(model.clone(), half)
    for value in probe.values():
        probe.export("max", "largest", value, probe.magnitude(value))
    for node in probe.nodes:
        probe.measure_sums(node)
    found = probe.run(samples, range(len(samples)), jobs, watch)
    probe = _Probe(model.clone(), half)
    probe.measure_errors(probe.nodes, kept=())
    return replace(found, errors=probe.run(samples, order, jobs, watch).errors)


def errors_of_kept(
    model: ir.Model,
    half: Half,
    kept: Collection[str],
    samples: Samples,
    order: Sequence[int],
    jobs: int,
) -> dict[str, float]:
    """Return the errors that kept nodes have still: from the halves that reach them.

    A kept node computes in float32 on what its makers give: rounded, unless they are kept too.
    """
    probe = _Probe(model.clone(), half)
    probe.measure_errors([n for n in probe.graph if n.name in kept], kept)
    return probe.run(samples, order, jobs, None).errors


class _Probe(ExtraNodes):
    def __init__(self, model: ir.Model, half: Half) -> None:
        super().__init__(model)
        self.model, self.half = model, half
        self.nodes = [
            node
            for node in model.graph
            if newest_slots(node, half) and not is_op(node, *_UNMEASURED)
        ]
        self.slots = {node: newest_slots(node, half) for node in self.nodes}
        self.wanted = set(self.graph.outputs)
        self.graph.outputs.clear()
        self.exports: list[tuple[str, str, str]] = []
        self.rounded: dict[ir.Value, ir.Value] = {}
        self.simulated: dict[ir.Value, ir.Value] = {}
        self.absolute: dict[ir.Value, ir.Value] = {}
        self.zero = self.constant("zero", np.float32(0))
        self.infinity = self.constant("infinity", np.float32(np.inf))

    def values(self) -> Iterable[ir.Value]:
        """Return what the nodes read and make, each once, without constants."""
        both = [v for node in self.nodes for v in (*node.inputs, *node.outputs)]
        found = dict.fromkeys(v for v in both if v is not None and is_float32(v))
        return [v for v in found if not is_constant(v) and (v.uses() or v in self.wanted)]

    def measure_sums(self, node: ir.Node) -> None:
        """Export the largest sum that an operator forms, and how many terms it has."""
        source = node.inputs[0] if node.inputs else None
        if source is None or not is_float32(source):
            return
        if is_op(node, *PRODUCTS) and self.half is FLOAT16:
            result = self.copy(node, [self.magnitudes(v) for v in node.inputs])[0]
            self.export("max", "sums", node, self.largest(result))
        elif is_op(node, *SUMS, *MEANS):
            result = self.copy(node, [self.magnitudes(source), *node.inputs[1:]])[0]
            terms = self.terms(node, source)
            if is_op(node, *MEANS):
                result = self.op("Mul", [result, terms])
            self.export("max", "sums", node, self.largest(result))
            self.export("max", "terms", node, terms)
        elif is_op(node, *SQUARES):
            result = node.outputs[0]
            if node.op_type == "ReduceL2":
                result = self.op("Mul", [result, result])
            self.export("max", "sums", node, self.largest(result))
            self.export("max", "terms", node, self.terms(node, source))
        elif is_op(node, *SOFTMAXES):
            self.export("max", "terms", node, self.terms(node, source))
        elif is_op(node, *NORMS) and source.shape is not None:
            self.measure_norm(node, source)

    def measure_norm(self, node: ir.Node, source: ir.Value) -> None:
        """Export the sum of squares and the variance that a norm takes."""
        rank = len(source.shape or ())
        first = (
            2 if node.op_type == "InstanceNormalization" else node.attributes.get_int("axis", -1)
        )
        axes = self.constant("axes", np.arange(first % rank, rank, dtype=np.int64))
        centred = source
        if node.op_type != "RMSNormalization":
            centred = self.op("Sub", [source, self.op("ReduceMean", [source, axes])])
        squares = self.op("ReduceSumSquare", [centred, axes])
        terms = self.op("Div", [self.count(source), self.count(squares)])
        least = self.op("ReduceMin", [squares], keepdims=0)
        self.export("max", "sums", node, self.largest(squares))
        self.export("max", "terms", node, terms)
        self.export("min", "variances", node, self.op("Div", [least, terms]))

    def terms(self, node: ir.Node, source: ir.Value) -> ir.Value:
        """Return the number of terms of each sum, a scalar in float32."""
        if is_op(node, "AveragePool"):
            window = math.prod(node.attributes.get_ints("kernel_shape", []))
            return self.constant("window", np.float32(window))
        if is_op(node, "CumSum"):
            length = self.op("Gather", [self.op("Shape", [source]), node.inputs[1]])
            return self.op("ReduceMax", [self.op("Cast", [length], to=1)], keepdims=0)
        if is_op(node, *SOFTMAXES):
            axis = node.attributes.get_int("axis", -1)
            ends = {"start": axis, "end": axis + 1} if axis != -1 else {"start": axis}
            shape = self.op("Shape", [source], **ends)
            return self.op("ReduceMax", [self.op("Cast", [shape], to=1)], keepdims=0)
        return self.op("Div", [self.count(source), self.count(node.outputs[0])])

    def measure_errors(self, nodes: Iterable[ir.Node], kept: Collection[str]) -> None:
        """Put copies behind nodes and export how far their outputs are from the float ones."""
        for node in nodes:
            moves = is_op(node, *MOVES)
            if moves and node.name not in kept:
                continue
            if node not in self.slots:  # computes in float32 as it is
                continue
            stays = node.name in kept
            halves = frozenset[int]() if stays else self.slots[node].inputs
            inputs = [self.read(v, kept, half=i in halves) for i, v in enumerate(node.inputs)]
            results = zip(node.outputs, self.copy(node, inputs), strict=True)
            for index, (exact, found) in enumerate(results):
                if stays:
                    self.simulated[exact] = found
                if exact.uses() or exact in self.wanted:
                    rounded = not stays and index in self.slots[node].outputs
                    self.compare(node, exact, self.round(found) if rounded else found)

    def read(self, value: ir.Value | None, kept: Collection[str], *, half: bool) -> ir.Value | None:
        """Return what a copy reads for an input: its number in the half type, or in float32."""
        if value is None or not is_float32(value):
            return value
        maker = value.producer()
        exact = maker is None or is_constant(value) or maker not in self.slots
        if exact or (maker is not None and maker.name in kept):
            given = self.simulated.get(value, value)
        else:
            given = self.round(value)
        return self.round(given) if half else given

    def compare(self, node: ir.Node, exact: ir.Value, found: ir.Value) -> None:
        """Export the squares of an output and of its error; of integers, their numbers."""
        same = self.op("Equal", [exact, found])
        if not is_float32(exact):
            differ = self.op("Cast", [self.op("Not", [same])], to=1)
            self.export("sum", "differ", node, self.op("ReduceSum", [differ], keepdims=0))
            self.export("sum", "count", node, self.count(exact))
            return
        number = self.op("Less", [self.op("Abs", [exact]), self.infinity])
        same = self.op("Or", [same, self.op("IsNaN", [exact])])
        error = self.op("Where", [same, self.zero, self.op("Sub", [exact, found])])
        power = self.op("Where", [number, exact, self.zero])
        for what, value in (("error", error), ("power", power)):
            sums = self.op("ReduceSumSquare", [value], keepdims=0)
            self.export("sum", what, node, sums)

    def constant(self, what: str, array: np.ndarray | np.generic) -> ir.Value:
        """Add a constant."""
        holder = self.nodes[0] if self.nodes else ir.Value(name="probe")
        return add_constant(self.graph, self.names.fresh(holder, what), np.asarray(array))

    def round(self, value: ir.Value) -> ir.Value:
        """Return the value's numbers in the half type, as float32; the same Cast for all."""
        if not is_float32(value):
            return value
        if value not in self.rounded:
            half = self.op("Cast", [value], to=int(self.half.dtype))
            wide = self.op("Cast", [half], to=int(ir.DataType.FLOAT))
            wide.type, wide.shape = value.type, value.shape
            self.rounded[value] = wide
        return self.rounded[value]

    def magnitudes(self, value: ir.Value | None) -> ir.Value | None:
        """Return finite magnitudes, 0 elsewhere."""
        if value is None or not is_float32(value):
            return value
        if value not in self.absolute:
            plain = self.op("Abs", [value])
            number = self.op("Less", [plain, self.infinity])
            self.absolute[value] = self.op("Where", [number, plain, self.zero])
        return self.absolute[value]

    def magnitude(self, value: ir.Value) -> ir.Value:
        """Return the largest finite magnitude, a scalar."""
        magnitudes = self.magnitudes(value)
        assert magnitudes is not None  # noqa: S101 - the value is one
        return self.largest(magnitudes)

    def largest(self, value: ir.Value) -> ir.Value:
        """Return the largest number, a scalar."""
        return self.op("ReduceMax", [value], keepdims=0)

    def count(self, value: ir.Value) -> ir.Value:
        """Return the number of elements, a scalar in float32."""
        return self.op("Cast", [self.op("Size", [value])], to=int(ir.DataType.FLOAT))

    def export(self, how: str, what: str, thing: ir.Node | ir.Value, value: ir.Value) -> None:
        """Hand out a scalar; over samples it is summed, or the largest or smallest is taken."""
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        result = value
        if value.is_initializer() or any(value is v for v in self.graph.outputs):
            result = self.op("Identity", [value])
            result.type, result.shape = value.type, value.shape
        self.graph.outputs.append(result)
        self.exports.append((how, what, thing.name or ""))

    def run(
        self, samples: Samples, order: Sequence[int], jobs: int, watch: Progress | None
    ) -> Figures:
        """Run the samples and unite what they show, in the order given."""
        found: dict[str, dict[str, float]] = defaultdict(dict)
        if self.exports:
            self.graph.sort()
            rows = self._rows(samples, order, jobs, watch)
            unite: dict[str, Callable[[np.ndarray], np.generic]]
            unite = {"max": np.max, "min": np.min, "sum": np.sum}
            for column, (how, what, name) in zip(rows.T, self.exports, strict=True):
                before = found[what].get(name, 0.0) if how == "sum" else 0.0
                found[what][name] = before + float(unite[how](column))
        errors = {name: _relative(e, found["power"][name]) for name, e in found["error"].items()}
        for name, differ in found["differ"].items():
            share = differ / max(found["count"][name], 1.0)
            errors[name] = max(errors.get(name, 0.0), share)
        return Figures(found["largest"], found["sums"], found["terms"], found["variances"], errors)

    def _rows(
        self, samples: Samples, order: Sequence[int], jobs: int, watch: Progress | None
    ) -> np.ndarray:
        """Return the exported scalars, a row for each sample."""
        session = Session(self.model, optimize=False)
        names = [str(value.name) for value in self.graph.outputs]

        def one(index: int) -> np.ndarray:
            results = session.run(samples[index], names)
            return np.asarray([float(results[name]) for name in names])

        rows = []
        with ThreadPoolExecutor(jobs) as pool:
            for done, row in enumerate(pool.map(one, order)):
                if watch is not None:
                    watch.step(STAGE, done, len(order))
                rows.append(row)
        if watch is not None:
            watch.step(STAGE, len(order), len(order))
        return np.stack(rows)


def _relative(error: float, power: float) -> float:
    """Return the relative L2 error of two sums of squares; infinite where there is no number."""
    if not np.isfinite(power) and np.isfinite(error):
        return 0.0
    ratio = error / power if power > 0 else (np.inf if error else 0.0)
    return float(np.sqrt(ratio)) if np.isfinite(ratio) else np.inf

"""Traces a torch module: torch.export with dynamic axes, then torch.onnx's dynamo exporter.

The ONNX graph keeps torch's names for weights and values, and takes the user's for inputs, outputs
and dynamic axes. What tells of the machine it was made on (stack traces, paths of sources) is
removed, so that the same module gives the same bytes.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qcompile.errors import ModelError, OutputError
from qcompile.graph.walk import all_graphs, all_nodes, weight_bytes
from qcompile.progress import Progress
from qcompile.source.torch_inputs import Axes, Inputs, key_of, widened
from qcompile.source.torch_library import hushed, torch_library
from qcompile.source.torch_problems import running_problem, tracing_problem, translation_problem

OPSET = 20
"""Of the ONNX file; a build converts it to the target's."""

EXTERNAL_BYTES = 1 << 29
"""Beyond this many bytes of weights they go to a file beside the model: protobuf ends at 2 GiB."""

_SCOPES = "pkg.torch.onnx.name_scopes"
_WEIGHTED = {"MatMul", "Gemm", "Conv", "ConvTranspose"}
_WORD = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class TorchModel:
    """A torch module and what it is traced on.

    Attributes:
        name: As the user gave it, for messages and reports.
        module: The ``nn.Module``, in eval mode; of a ``.pt2`` file, what runs the program.
        inputs: The example inputs.
        axes: The dynamic ones.
        ranges: Least and largest size of an axis, by its name, where they are known.
        program: The exported program of a ``.pt2`` file; its axes are decided, not named.
        tokenizer: A ``tokenizer.json`` that goes with the model.
    """

    name: str
    module: Any
    inputs: Inputs
    axes: Axes = field(default_factory=dict)
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    program: Any = None
    tokenizer: Path | None = None


@dataclass(frozen=True)
class Traced:
    """What tracing gives.

    Attributes:
        model: The ONNX graph; its weights are still those of the module.
        sizes: Input name to its shape: numbers and, where torch found an axis to be dynamic,
            ``sympy`` expressions of the symbols in ``axes``.
        axes: Symbol to the name of its axis and the least and largest size that the traced code
            holds for; None is no bound.
    """

    model: ir.Model
    sizes: Mapping[str, tuple[Any, ...]]
    axes: Mapping[Any, tuple[str, int, int | None]]


def run_module(source: TorchModel, inputs: Inputs) -> list[tuple[str, Any]]:
    """Run the module and return its output tensors, each with a name.

    The name is what leads to the tensor in a dict or a data class, empty in a tuple.

    Raises:
        Exception: Whatever the module raises.
    """
    torch = torch_library()
    from torch.utils import _pytree as pytree

    with torch.no_grad(), hushed():
        result = source.module(*inputs.args, **inputs.kwargs)
        leaves, _ = pytree.tree_flatten_with_path(result)
    return [(_output_name(path), leaf) for path, leaf in leaves if isinstance(leaf, torch.Tensor)]


def float_types(module: Any) -> set[str]:  # noqa: ANN401
    """Return the names of the floating-point types of a module's weights."""
    found = {p.dtype for p in module.parameters() if p.is_floating_point()}
    return {str(dtype).removeprefix("torch.") for dtype in found}


def _output_name(path: Any) -> str:  # noqa: ANN401
    named = any(not hasattr(key, "idx") for key in path)
    return ".".join(map(key_of, path)) if named else ""


def trace(source: TorchModel, progress: Progress) -> Traced:
    """Make an ONNX graph of a torch module.

    Args:
        source: The module, in eval mode, on the CPU.
        progress: Hears of axes whose size the code restricts.

    Raises:
        ModelError: The module fails on the example inputs, cannot be traced, or uses an operator
            that torch.onnx does not translate.
    """
    foreign = float_types(source.module) - {"float32", "float16"}
    if foreign:
        raise ModelError(
            f"{source.name}: has weights in {foreign.pop()}, which ONNX Runtime does not run on "
            "CPUs, so that nothing can be compared; convert the module first: module.float()"
        )
    try:
        outputs = run_module(source, source.inputs)
    except Exception as error:
        raise running_problem(source.name, "forward fails on the example inputs", error) from error
    if not outputs:
        raise ModelError(f"{source.name}: forward returns no tensor")
    program = source.program if source.program is not None else _exported(source)
    model = _translated(source.name, program)
    sizes = _sizes(source, program)
    axes = _named_axes(source, program, sizes, progress)
    _name_by_module(model)
    _strip(model)
    _rename(model, list(source.inputs.tensors()), [name for name, _ in outputs])
    rename_axes(model, {str(symbol): label for symbol, (label, _, _) in axes.items()})
    return Traced(model, sizes, axes)


def _exported(source: TorchModel) -> Any:  # noqa: ANN401
    torch = torch_library()
    hint = torch.export.Dim.DYNAMIC

    def spec(label: str) -> Any:  # noqa: ANN401
        low, high = source.ranges.get(label, (0, 0))
        return hint(min=low, max=high) if low >= 2 else hint

    inputs = source.inputs.replaced(widened(source.inputs.tensors(), source.axes))
    try:
        with torch.no_grad(), hushed():
            return torch.export.export(
                source.module,
                inputs.args,
                inputs.kwargs,
                dynamic_shapes=inputs.shapes(source.axes, spec),
            )
    except Exception as error:
        raise tracing_problem(source.name, error) from error


def _translated(name: str, program: Any) -> ir.Model:  # noqa: ANN401
    torch = torch_library()
    try:
        with torch.no_grad(), hushed():
            made = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    except Exception as error:
        raise translation_problem(name, program, error) from error
    return made.model  # type: ignore[no-any-return]


def _sizes(source: TorchModel, program: Any) -> dict[str, tuple[Any, ...]]:  # noqa: ANN401
    """Return the shape of each input tensor, as the program has it."""
    meta = {node.name: node.meta.get("val") for node in program.graph.nodes}
    tensors = [
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.kind.name == "USER_INPUT" and hasattr(meta.get(spec.arg.name), "shape")
    ]
    names = list(source.inputs.tensors())
    return {
        name: tuple(
            size if isinstance(size, int) else size.node.expr for size in meta[tensor].shape
        )
        for name, tensor in zip(names, tensors, strict=True)
    }


def _named_axes(
    source: TorchModel,
    program: Any,  # noqa: ANN401
    sizes: Mapping[str, tuple[Any, ...]],
    progress: Progress,
) -> dict[Any, tuple[str, int, int | None]]:
    """Return symbol to name and range; symbols that the user did not name keep torch's name.

    Raises:
        ModelError: An axis is dynamic for the user, but not for the program of a ``.pt2`` file.
    """
    found: dict[Any, tuple[str, int, int | None]] = {}
    for name, dims in source.axes.items():
        for axis, wanted in dims.items():
            if isinstance(sizes[name][axis], int):
                raise ModelError(
                    f"{source.name}: axis {wanted} cannot be dynamic: the program fixes dimension "
                    f"{axis} of {name} to {sizes[name][axis]}"
                )
    for name, shape in sizes.items():
        for axis, size in enumerate(shape):
            for symbol in sorted(getattr(size, "free_symbols", ()), key=str):
                label = source.axes.get(name, {}).get(axis) if size == symbol else None
                known = found.get(symbol)
                if known is None or (label and known[0] == str(symbol)):
                    low, high = _bounds(program, symbol)
                    found[symbol] = label or str(symbol), low, high
    for label, low, high in sorted(set(found.values()), key=str):
        if high is not None and source.ranges.get(label, (0, 0))[1] != high:
            progress.notice(
                f"axis {label}: the trace holds for sizes of {low} to {high}; beyond, the graph "
                "may compute something else, and nothing says so when it runs"
            )
    return found


def _bounds(program: Any, symbol: Any) -> tuple[int, int | None]:  # noqa: ANN401
    """Return what torch says of a symbol; its 2 at the low end only means that 1 is special."""
    known = program.range_constraints.get(symbol)
    if known is None:
        return 1, None
    low = int(known.lower)
    high = None if "oo" in str(known.upper) or int(known.upper) >= 1 << 62 else int(known.upper)
    return (1 if low == 2 else low), high


def _name_by_module(model: ir.Model) -> None:
    """Name nodes after the submodule that they belong to, so that patterns can pick them.

    ``node_linear_9`` becomes ``layers.0.q_proj/node_linear_9``; a weight that folding has made
    anonymous becomes ``layers.0.q_proj.weight``.
    """
    taken = {name for graph in all_graphs(model) for name in graph.initializers}
    for node, _ in all_nodes(model):
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        scope = scopes[-2] if len(scopes) > 1 else ""
        if not scope:
            continue
        node.name = f"{scope}/{node.name}"
        weight = node.inputs[1] if node.op_type in _WEIGHTED else None
        name = f"{scope}.weight"
        if weight is None or not weight.is_initializer() or name in taken:
            continue
        if str(weight.name).startswith("val_"):
            weight.name = name
            taken.add(name)


def _strip(model: ir.Model) -> None:
    """Remove what does not change the result: origins, documentation, traces."""
    model.metadata_props.clear()
    model.doc_string = None
    for graph in all_graphs(model):
        graph.metadata_props.clear()
        graph.doc_string = None
        values = [*graph.inputs, *graph.initializers.values()]
        for value in values:
            value.metadata_props.clear()
            value.doc_string = None
    for node, _ in all_nodes(model):
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
    for function in model.functions.values():
        function.metadata_props.clear()
        function.doc_string = None


def _rename(model: ir.Model, inputs: list[str], outputs: list[str]) -> None:
    """Give inputs and outputs the user's names; values inside that have one of them make room."""
    graph = model.graph
    wanted = dict(zip(graph.inputs, inputs, strict=True))
    taken = {*inputs}
    if len(outputs) == len(graph.outputs):
        for value, name in zip(graph.outputs, outputs, strict=True):
            if name and name not in taken and value not in wanted:
                wanted[value] = name
                taken.add(name)
    inner = [value for node, _ in all_nodes(model) for value in node.outputs]
    for value in [*graph.inputs, *inner]:
        if value not in wanted and value.name in taken:
            value.name = f"{value.name}_inner"
    for number, value in enumerate(wanted):
        value.name = f"{number}:"  # free of all others, for two may swap their names
    for value, name in wanted.items():
        value.name = name


def rename_axes(model: ir.Model, names: Mapping[str, str]) -> None:
    """Call dynamic dimensions what the user calls them, in expressions too (``past + length``)."""

    def renamed(dim: Any) -> Any:  # noqa: ANN401
        if isinstance(dim, int) or dim.value is None:
            return dim
        text = _WORD.sub(lambda word: names.get(word[0], word[0]), str(dim.value))
        return ir.SymbolicDim(text)

    for graph in all_graphs(model):
        for value in [*graph.inputs, *(out for node in graph for out in node.outputs)]:
            if value.shape is not None:
                value.shape = ir.Shape([renamed(dim) for dim in value.shape])


def write_model(model: ir.Model, path: Path) -> list[Path]:
    """Write the graph; large weights go to ``<name>.data`` beside it, one tensor at a time.

    Returns:
        The files.

    Raises:
        OutputError: The disk refuses.
    """
    data = path.with_name(f"{path.name}.data")
    try:
        if weight_bytes(model) > EXTERNAL_BYTES:
            ir.save(model, path, external_data=data.name)
            return [path, data]
        ir.save(model, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error
    return [path]

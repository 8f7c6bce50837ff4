"""Cuts a graph into stages that run one after another, so that no more than one is ever loaded.

A stage ends where the activation stands that a group of weights reads: run it on all samples, solve
the weights that read the activation, then run the next stage with them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qcompile.graph.walk import subgraphs

_RANDOM = frozenset(
    {"Bernoulli", "Dropout", "Multinomial"}
    | {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)

Types = Mapping[str, tuple[ir.DataType, Sequence[int | str | None] | None]]
"""Of activations, by name: element type, and dimensions where the rank is known."""


@dataclass(frozen=True)
class Group:
    """Weighted nodes that read the same activation: query, key and value; gate and up.

    Attributes:
        x: What they read.
        nodes: In graph order.
    """

    x: ir.Value
    nodes: tuple[ir.Node, ...]


@dataclass(frozen=True)
class Stage:
    """Nodes that are run together.

    Attributes:
        nodes: In graph order; each node of the graph is in one stage.
        reads: Activations that earlier stages gave, and graph inputs.
        gives: Activations made here that later stages, the group or the model's outputs are.
        drops: Those of ``reads`` that no later stage and no output is; never a graph input.
        group: Who reads what the stage is cut at; None for the last stage.
    """

    nodes: tuple[ir.Node, ...]
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    drops: tuple[str, ...]
    group: Group | None


def reader_groups(nodes: Sequence[ir.Node]) -> list[Group]:
    """Group nodes of one graph by the activation that they read.

    That is a node's first input that depends on a graph input: the left one of ``MatMul(x, W)``,
    the right one of ``MatMul(W, x)``. A node that computes with constants alone is left out.

    Args:
        nodes: Nodes of the main graph, in any order.

    Returns:
        Groups in the order of their first nodes.
    """
    if not nodes or nodes[0].graph is None:
        return []
    chosen, static = set(nodes), _static_values(nodes[0].graph)
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes[0].graph:
        moving = (v for v in node.inputs if v is not None and v not in static)
        x = next(moving, None) if node in chosen else None
        if x is not None:
            readers.setdefault(x, []).append(node)
    return [Group(x, tuple(found)) for x, found in readers.items()]


def cut(model: ir.Model, groups: Sequence[Group]) -> list[Stage]:
    """Cut the main graph at the activations that the groups read.

    Stage ``k`` computes what the activation of group ``k`` needs and no stage before it computed;
    the last one computes the rest. So the nodes of a group stand behind its stage. A stage may be
    empty, where its activation is there already. What depends on no graph input (weights on their
    way into a node) is no activation: ``stage_model`` computes it again where it is read.

    Args:
        model: Its main graph must be in topological order, as ONNX asks. Nodes with subgraphs are
            not cut; what a subgraph captures counts as read by its node.
        groups: In the order of ``reader_groups``.

    Returns:
        ``len(groups) + 1`` stages.
    """
    graph = model.graph
    place = {node: index for index, node in enumerate(graph)}
    taken: set[ir.Node] = set()
    parts = []
    for group in groups:
        found = _ancestors(group.x, taken)
        taken |= found
        parts.append(sorted(found, key=place.__getitem__))
    parts.append([node for node in graph if node not in taken])
    return _stages(model, parts, groups)


def cut_by_weight(model: ir.Model, budget_bytes: int) -> list[Stage]:
    """Cut the main graph so that the weights of each stage stay within a budget.

    Args:
        model: As in ``cut``.
        budget_bytes: Of weights, as stored. A single node with more is a stage of its own.

    Returns:
        As few stages as a walk along the graph finds.
    """
    readers = _weight_readers(model.graph)
    sizes = {node: _nbytes(weights) for node, weights in readers.items()}
    groups = reader_groups([node for node, size in sizes.items() if size > budget_bytes // 64])
    kept, held = [], 0
    for index, stage in enumerate(cut(model, groups)):
        size = _nbytes({v for node in stage.nodes for v in readers.get(node, ())})
        if held and held + size > budget_bytes:
            kept.append(groups[index - 1])
            held = 0
        held += size
    return cut(model, kept)


def stage_model(
    model: ir.Model,
    stage: Stage,
    types: Types,
    replacements: Mapping[str, ir.TensorProtocol] | None = None,
) -> ir.Model:
    """Return a stage as a model: ``reads`` to ``gives``, with the initializers that it uses.

    Tensors are shared with ``model``: no weight is read or copied.

    Args:
        model: The model that the stage was cut from.
        stage: The stage.
        types: Of ``reads``. Graph inputs may be left out; what the model says of them holds.
        replacements: Tensors to use in place of the model's, by initializer name.
    """
    graph = model.graph
    values = {v.name: v for v in graph.inputs} | {v.name: v for n in graph for v in n.outputs}
    nodes, initializers = _self_standing(graph, stage)
    view = ir.GraphView(
        [values[name] for name in stage.reads],
        [values[name] for name in stage.gives],
        nodes=nodes,
        initializers=initializers,
        opset_imports=dict(graph.opset_imports),
        name=graph.name,
    )
    small = view.clone()
    for value in small.inputs:
        value.const_value = None
        if (name := str(value.name)) in types:
            dtype, shape = types[name]
            value.type = ir.TensorType(dtype)
            value.shape = None if shape is None else ir.Shape(shape)
    for name, tensor in (replacements or {}).items():
        if name in small.initializers:
            small.initializers[name].const_value = tensor
    for node in small:
        node.metadata_props.clear()
        node.doc_string = None
    functions = [function.clone() for function in model.functions.values()]
    return ir.Model(small, ir_version=model.ir_version, functions=functions)


def _stages(
    model: ir.Model, parts: Sequence[Sequence[ir.Node]], groups: Sequence[Group]
) -> list[Stage]:
    """Find what flows between the parts."""
    graph, outputs, end = model.graph, set(model.graph.outputs), len(parts)
    stored = outputs | {group.x for group in groups}
    static = _static_values(graph) - {v for v in stored if v.producer() is not None}
    made = {v: index for index, nodes in enumerate(parts) for node in nodes for v in node.outputs}
    reads: list[dict[ir.Value, None]] = []
    last: dict[ir.Value, int] = dict.fromkeys(outputs, end)
    for index, nodes in enumerate(parts):
        wanted = [v for node in nodes for v in _read_values(node, graph)]
        if index < len(groups):
            wanted.append(groups[index].x)
        reads.append({v: None for v in wanted if v not in static and made.get(v, -1) < index})
        for value in reads[index]:
            last[value] = max(last.get(value, -1), index)
    stages = []
    for index, nodes in enumerate(parts):
        given = [v for node in nodes for v in node.outputs if v not in static]
        ends = {groups[index].x} if index < len(groups) else set()
        stages.append(
            Stage(
                nodes=tuple(nodes),
                reads=_names(reads[index]),
                gives=_names(v for v in given if last.get(v, -1) > index or v in ends),
                drops=_names(v for v in reads[index] if v in made and last[v] == index),
                group=groups[index] if index < len(groups) else None,
            )
        )
    return stages


def _names(values: Iterable[ir.Value]) -> tuple[str, ...]:
    return tuple(str(value.name) for value in values)


def _ancestors(x: ir.Value, taken: set[ir.Node]) -> set[ir.Node]:
    """Return the nodes that ``x`` needs, but for those that are taken."""
    found: set[ir.Node] = set()
    front = [x.producer()]
    while front:
        node = front.pop()
        if node is None or node in taken or node in found:
            continue
        found.add(node)
        front += [v.producer() for v in _read_values(node, node.graph)]
    return found


def _read_values(node: ir.Node, graph: ir.Graph | ir.Function | None) -> list[ir.Value]:
    """Return what a node reads of its graph, itself or in subgraphs."""
    found = [v for v in node.inputs if v is not None]
    for inner in subgraphs(node):
        within = [v for n in ir.traversal.RecursiveGraphIterator(inner) for v in n.inputs]
        found += [v for v in [*within, *inner.outputs] if v is not None and v.graph is graph]
    return found


def _static_values(graph: ir.Graph | ir.Function) -> set[ir.Value]:
    """Return the initializers and what is computed from them alone, the same in each run."""
    static: set[ir.Value] = set()
    if isinstance(graph, ir.Graph):
        static = {v for v in graph.initializers.values() if not v.is_graph_input()}
    for node in graph:
        plain = node.domain in ("", "com.microsoft") and node.op_type not in _RANDOM
        read = [v for v in node.inputs if v is not None]
        if plain and not subgraphs(node) and all(v in static for v in read):
            static.update(node.outputs)
    return static


def _self_standing(graph: ir.Graph, stage: Stage) -> tuple[list[ir.Node], list[ir.Value]]:
    """Return the stage's nodes with those that it needs again, and the initializers of all."""
    found, fed = set(stage.nodes), set(stage.reads)
    initializers: dict[ir.Value, None] = {}
    front = list(stage.nodes)
    while front:
        for value in _read_values(front.pop(), graph):
            node = value.producer()
            if value.name in fed:
                continue
            if value.is_initializer():
                initializers[value] = None
            elif node is not None and node not in found:
                found.add(node)
                front.append(node)
    named = {value.name for value in initializers}
    return (
        [node for node in graph if node in found],
        [value for name, value in graph.initializers.items() if name in named],
    )


def _weight_readers(graph: ir.Graph) -> dict[ir.Node, set[ir.Value]]:
    """Return the initializers that each node on the way of an activation reads, also indirectly."""
    static = _static_values(graph)
    behind: dict[ir.Value, set[ir.Value]] = {}
    readers = {}
    for node in graph:
        weights: set[ir.Value] = set()
        for value in _read_values(node, graph):
            weights |= {value} if value.is_initializer() else behind.get(value, set())
        if node.outputs and all(v in static for v in node.outputs):
            behind |= dict.fromkeys(node.outputs, weights)
        elif weights:
            readers[node] = weights
    return readers


def _nbytes(weights: set[ir.Value]) -> int:
    return sum(v.const_value.nbytes for v in weights if v.const_value is not None)

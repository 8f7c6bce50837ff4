"""Nodes put before or behind another one, which keeps its name and is read as before."""

from collections.abc import Sequence

import onnx_ir as ir

from qcompile.graph.edit import Names, take_over


def new_node(
    names: Names,
    op: str,
    inputs: Sequence[ir.Value],
    owner: ir.Value,
    what: str,
    shape: Sequence[int | ir.SymbolicDim | None] | ir.Shape | None = None,
    **attributes: int,
) -> ir.Node:
    """Make a node of the default domain that stands in no graph yet.

    Args:
        names: Of the model.
        op: Operator type; it has one output.
        inputs: What it reads.
        owner: A value that the output belongs to, and whose type it has.
        what: What it is of the owner: the output is ``<owner>.<what>``, the node
            ``<owner>.<what>.<op>``.
        shape: Of the output.
        attributes: Integers.
    """
    node = ir.node(op, inputs, attributes, name=names.fresh(owner, f"{what}.{op}"))
    value = node.outputs[0]
    value.name, value.type = names.fresh(owner, what), owner.type
    value.shape = None if shape is None else ir.Shape(shape)
    return node


def put_behind(names: Names, node: ir.Node, nodes: Sequence[ir.Node], what: str) -> None:
    """Put nodes behind one whose output they read; what the last one makes takes its place.

    Args:
        names: Of the model.
        node: Its output ``y`` becomes ``<y>.<what>``, and is read by ``nodes`` alone.
        nodes: In order; the output of the last one is ``y`` for all other readers of ``y``.
        what: What the node's own output is of it.
    """
    y, last = node.outputs[0], nodes[-1].outputs[0]
    own = [use for use in y.uses() if use.node in nodes]
    name = names.fresh(y, what)
    take_over(last, y)
    for use in own:
        use.node.replace_input_with(use.idx, y)
    y.name = name
    node.graph.insert_after(node, nodes)  # type: ignore[union-attr]

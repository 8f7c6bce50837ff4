"""Nodes that a probe adds beside those of a graph, to see what rounding does to them."""

from collections.abc import Sequence

import onnx_ir as ir

from qcompile.graph.edit import Names


class ExtraNodes:
    """Adds nodes at the end of a graph, under names that nothing else uses."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.names = Names(model)

    def op(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: int) -> ir.Value:
        """Add a node of the default domain; return its output."""
        survivor = next(v for v in inputs if v is not None)
        node = ir.node(op_type, inputs, attributes=attributes)
        node.name = self.names.fresh(survivor, op_type)
        node.outputs[0].name = self.names.fresh(survivor, f"{op_type}.out")
        self.graph.append(node)
        return node.outputs[0]

    def copy(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> Sequence[ir.Value]:
        """Add a node like this one that reads other inputs; return its outputs."""
        copy = ir.node(
            node.op_type,
            inputs,
            attributes=dict(node.attributes),
            domain=node.domain,
            num_outputs=len(node.outputs),
            name=self.names.fresh(node, "probe"),
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name = self.names.fresh(old, "probe") if old.name else ""
            new.type, new.shape = old.type, old.shape
        self.graph.append(copy)
        return copy.outputs

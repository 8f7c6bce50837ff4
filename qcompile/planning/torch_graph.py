"""A block of a model in torch, so that gradients flow through it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from qcompile.graph.walk import constant
from qcompile.numerics.adaround import Tensor, torch_library
from qcompile.planning.forms import value_name
from qcompile.planning.torch_operators import NotHere, Torch, operator_of


@dataclass(frozen=True)
class TorchGraph:
    """A graph of the operators that are here.

    Attributes:
        model: Its main graph is run; all it reads are inputs and initializers.
        device: Where to compute.
    """

    model: ir.Model
    device: str
    constants: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def run(self, feeds: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs by name.

        Args:
            feeds: The graph's inputs.
            weights: What to take instead of initializers.

        Raises:
            NotHere: A node cannot be run.
        """
        library = Torch(torch_library(), self.device)
        values: dict[str, Any] = {**self._stored(library), **weights, **feeds}
        for node in self.model.graph:
            inputs = [values[value_name(v)] if v is not None else None for v in node.inputs]
            operator = operator_of(node)
            if operator is None:
                raise NotHere(node.op_type)
            made = operator(library, node, inputs)
            many = made if isinstance(made, tuple | list) else [made]
            names = [value_name(v) for v in node.outputs]
            values.update(zip(names, many, strict=False))
        return {value_name(v): values[value_name(v)] for v in self.model.graph.outputs}

    def _stored(self, library: Torch) -> dict[str, Tensor]:
        if not self.constants:
            for name, value in self.model.graph.initializers.items():
                array = constant(value)
                if array is not None:
                    self.constants[name] = library.tensor(array)
        return self.constants

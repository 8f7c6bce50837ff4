"""A torchao quantizer that annotates what the target's table decided."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase
from torchao.quantization.pt2e.qat_utils import _fuse_conv_bn_qat
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
)

from qcompile.planning.select import Selection
from qcompile.planning.tensors import input_name
from qcompile.qat import batch_norm
from qcompile.qat.exported import Lowered
from qcompile.qat.fake_quant import (
    ActivationFakeQuant,
    BiasFakeQuant,
    WeightFakeQuant,
)
from qcompile.qat.places import Places, bias_of, find_places, tag
from qcompile.qat.plan import Goal, Grid, scales_of, weight_limit

_KEY = "quantization_annotation"


@dataclass(frozen=True)
class _Maker:
    """Makes one fake quantizer, in the form that torchao wants a constructor in."""

    module: FakeQuantizeBase
    __name__ = "FakeQuant"

    def with_args(self, **_: object) -> Callable[[], FakeQuantizeBase]:
        return lambda: self.module

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Maker":
        return self


class TableQuantizer(Quantizer):
    """Annotates a graph with what a selection rounds; the table of the target made the selection.

    Attributes:
        places: Where the graph rounds, once it has been annotated.
    """

    def __init__(
        self, goal: Goal, lowered: Lowered, selection: Selection, grids: dict[str, Grid]
    ) -> None:
        super().__init__()
        self.goal, self.lowered, self.selection = goal, lowered, selection
        self.grids, self.learned = grids, goal.rounding.learned
        self.places = Places()
        self._made: dict[str, ActivationFakeQuant] = {}
        self._owners = {str(node.name): node for node in lowered.model.graph}

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Fuse convolutions with their batch norms, and give these their own numbers back."""
        tag(model.graph)
        norms = batch_norm.norms_of(model.graph)
        _fuse_conv_bn_qat(model)
        batch_norm.restore(model, norms)
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Say of each node which of its inputs, and whether its output, is rounded."""
        self.places = find_places(self.lowered, self.selection, model.graph)
        for node, name in self.places.outputs.items():
            _annotation(node).output_qspec = self._activation(name)
        for (source, reader), name in self.places.edges.items():
            _annotation(reader).input_qspec_map[source] = self._activation(name)
        for (node, weight), (axis, owner) in self.places.weights.items():
            rounding = self._weight(model, weight, axis, owner)
            _annotation(node).input_qspec_map[weight] = _spec(rounding)
            bias = bias_of(node)
            if rounding.bias is not None and bias is not None:
                _annotation(node).input_qspec_map[bias] = _spec(rounding.bias)
        return model

    def validate(self, model: GraphModule) -> None:
        """Do nothing: the table has been checked."""

    def _activation(self, name: str) -> QuantizationSpec:
        return _spec(self._rounding(name))

    def _rounding(self, name: str) -> ActivationFakeQuant:
        source = self.selection.tied.get(name, name)
        if source not in self._made:
            module = ActivationFakeQuant(
                *scales_of(self.grids, source),
                self.grids[source].codes,
                learned=self.learned,
                scale_type=self.goal.types.scale,
            )
            module.tensor = source
            self._made[source] = module
        return self._made[source]

    def _weight(self, model: GraphModule, weight: Node, axis: int, owner: str) -> WeightFakeQuant:
        module = WeightFakeQuant(
            batch_norm.constant_of(model, weight),
            axis,
            weight_limit(self.goal, self.lowered.model, owner),
            learned=self.learned,
            scale_type=self.goal.types.scale,
        )
        module.tensor = owner
        if owner in self.selection.biases.values():
            module.bias = BiasFakeQuant(self._rounding(input_name(self._owners[owner], 0)), module)
        return module


def _annotation(node: Node) -> QuantizationAnnotation:
    return node.meta.setdefault(_KEY, QuantizationAnnotation(_annotated=True))


def _spec(module: ActivationFakeQuant | WeightFakeQuant | BiasFakeQuant) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=module.dtype,
        observer_or_fake_quant_ctr=_Maker(module),
        quant_min=module.quant_min,
        quant_max=module.quant_max,
        qscheme=module.qscheme,
        ch_axis=getattr(module, "ch_axis", None),
    )

"""Pass: convert opset."""

from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir
from onnx_ir.external_data import set_base_dir

from qcompile.errors import ModelError
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.slim import slim_proto
from qcompile.graph.walk import all_graphs, all_nodes, constant, is_op

_OLDEST_OF_ONNXSCRIPT = 18


@dataclass(frozen=True, kw_only=True)
class ConvertOpset(GraphPass):
    """Bring the default domain to the working opset; a newer one is kept.

    Opset 21 has Gelu (20), LayerNormalization (17) and blocked QuantizeLinear (21). Conversion
    from 18 on is onnxscript's, below it that of the onnx C++ library.

    Before: ``opset 11``, ``Squeeze<axes=[2]>(x)``.
    After:  ``opset 21``, ``Squeeze(x, axes)``.
    Visits: the main graph and subgraphs.
    """

    name: ClassVar[str] = "convert-opset"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.INLINED})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.WORKING_OPSET})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED})
    effect: ClassVar[Effect] = Effect.EXACT

    opset: int = 21

    def rewrite(self, model: ir.Model) -> bool:
        """Convert if the model's opset is older.

        Raises:
            ModelError: No converter can.
        """
        found = model.opset_imports[""]
        if found >= self.opset:
            return False
        if found < 13 and any(is_op(node, "Hardmax") for node, _ in all_nodes(model)):
            raise ModelError(
                f"Hardmax of opset {found} means something else since 13; export again"
            )
        try:
            if found >= _OLDEST_OF_ONNXSCRIPT:
                from onnxscript.version_converter import ConvertVersionPass

                ConvertVersionPass(self.opset)(model)
            else:
                _convert_with_onnx(model, self.opset)
                if found < 11:
                    _restore_resize(model)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"cannot convert opset {found} to {self.opset}: {reason}") from error
        return True


def _convert_with_onnx(model: ir.Model, opset: int) -> None:
    old = model.graph
    folder = _external_folder(model)
    custom = {domain: version for domain, version in old.opset_imports.items() if domain}
    new = ir.from_proto(onnx.version_converter.convert_version(slim_proto(model), opset)).graph
    user_inputs = new.inputs[: len(old.inputs)]
    for value in new.inputs[len(old.inputs) :]:
        value.const_value = old.initializers[str(value.name)].const_value
    large = new.inputs[len(old.inputs) :]
    new.inputs.clear()
    new.inputs.extend(user_inputs)
    for value in large:
        new.register_initializer(value)
    new.opset_imports.update(custom)
    if folder is not None:
        set_base_dir(new, folder)
    model.graph = new


def _restore_resize(model: ir.Model) -> None:
    """Say how Upsample and Resize found their pixels before opset 11, which the converter forgets.

    ONNX Runtime rounds nearest neighbours down when it enlarges, and up when it reduces.
    """
    for node, _ in all_nodes(model):
        if is_op(node, "Resize"):
            scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
            reduces = scales is not None and bool((scales < 1).any())
            modes = {
                "coordinate_transformation_mode": "asymmetric",
                "nearest_mode": "ceil" if reduces else "floor",
            }
            for name, mode in modes.items():
                node.attributes[name] = ir.AttrString(name, mode)


def _external_folder(model: ir.Model) -> str | None:
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                return str(value.const_value.base_dir)
    return None

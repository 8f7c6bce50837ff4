"""Pass: fuse pad."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from qcompile.graph.edit import remove_dead
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import constant, consumers, is_op, scalar


@dataclass(frozen=True, kw_only=True)
class FusePad(GraphPass):
    """Move zero padding of spatial axes from a Pad into the Conv or AveragePool that reads it.

    An AveragePool then counts the padding, as it did when the padding was data.

    Before: ``y = Conv<pads=[0, 0, 0, 0]>(Pad<constant>(x, [0, 0, 1, 1, 0, 0, 2, 2], 0), W)``.
    After:  ``y = Conv<pads=[1, 1, 2, 2]>(x, W)``.
    Visits: the main graph. Leaves: other modes and values, computed or negative pads, pads of the
    batch or the channels, readers that choose their own padding (auto_pad SAME), AveragePool with
    padding of its own, with ceil_mode, or smaller than the padding.
    """

    name: ClassVar[str] = "fuse-pad"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.TYPED, Fact.WORKING_OPSET})
    effect: ClassVar[Effect] = Effect.REASSOCIATES

    def rewrite(self, model: ir.Model) -> bool:
        """Find all readers that can take padding over, then move it."""
        found = []
        for pad in [n for n in model.graph if is_op(n, "Pad")]:
            pads = _spatial_pads(pad)
            readers = consumers(pad.outputs[0])
            if pads is None:
                self.refuse("it is not constant zero padding of spatial axes alone")
                continue
            for reader, index in readers:
                reason = _obstacle(reader, index, pads)
                if reason is None:
                    found.append((pad, reader, pads))
                else:
                    self.refuse(reason)
        for pad, reader, pads in found:
            _move(pad, reader, pads)
        remove_dead(list(dict.fromkeys(pad for pad, _, _ in found)))
        return bool(found)


def _spatial_pads(pad: ir.Node) -> list[int] | None:
    """Return begins then ends of the spatial axes, or None if this is other padding."""
    x = pad.inputs[0]
    amounts = constant(pad.inputs[1])
    value = pad.inputs[2] if len(pad.inputs) > 2 else None
    if x is None or x.shape is None or amounts is None:
        return None
    if pad.attributes.get_string("mode", "constant") != "constant":
        return None
    if value is not None and scalar(value) != 0.0:
        return None
    rank = len(x.shape)
    axes = list(range(rank))
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        chosen = constant(pad.inputs[3])
        if chosen is None:
            return None
        axes = [int(a) % rank for a in chosen]
    begins, ends = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        begins[axis], ends[axis] = int(amounts[i]), int(amounts[len(axes) + i])
    pads = begins[2:] + ends[2:]
    if rank < 3 or any(begins[:2] + ends[:2]) or min(pads) < 0:
        return None
    return pads


def _obstacle(reader: ir.Node, index: int, pads: list[int]) -> str | None:
    if index != 0 or not is_op(reader, "Conv", "AveragePool"):
        return f"its reader is {reader.op_type}"
    if reader.attributes.get_string("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        return "its reader chooses its own padding (auto_pad)"
    if reader.op_type == "AveragePool":
        own = reader.attributes.get_ints("pads", [])
        kernel = list(reader.attributes.get_ints("kernel_shape", []))
        too_wide = any(p >= k for p, k in zip(pads, kernel + kernel, strict=True))
        if any(own) or too_wide or reader.attributes.get_int("ceil_mode", 0) == 1:
            return "its reader is an AveragePool that cannot count this padding"
    return None


def _move(pad: ir.Node, reader: ir.Node, pads: list[int]) -> None:
    own = reader.attributes.get_ints("pads", [0] * len(pads))
    if reader.attributes.get_string("auto_pad", "NOTSET") == "VALID":
        own = [0] * len(pads)
    reader.attributes.pop("auto_pad", None)
    reader.attributes["pads"] = ir.AttrInt64s(
        "pads", [a + b for a, b in zip(own, pads, strict=True)]
    )
    if reader.op_type == "AveragePool":
        reader.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
    reader.replace_input_with(0, pad.inputs[0])

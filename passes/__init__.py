"""The passes in the order in which they run; the order is the documentation."""

from qcompile.graph.protocol import GraphPass
from qcompile.numerics.regrid import Given
from qcompile.passes.absorb_bias import AbsorbBias
from qcompile.passes.average_codes import AverageCodes
from qcompile.passes.cast_floats import CastFloats
from qcompile.passes.clean_up import CleanUp
from qcompile.passes.convert_opset import ConvertOpset
from qcompile.passes.correct_bias import CorrectBias
from qcompile.passes.dequantize_graph import DequantizeGraph
from qcompile.passes.divide_rows import DivideRows
from qcompile.passes.dynamic_matmul import DynamicMatmul
from qcompile.passes.expand_prelu import ExpandPrelu
from qcompile.passes.expand_qlinear import ExpandQlinear
from qcompile.passes.fence_float_nodes import FenceFloatNodes
from qcompile.passes.flatten_tokens import FlattenTokens
from qcompile.passes.fold_batch_norm import FoldBatchNorm
from qcompile.passes.fold_constants import FoldConstants
from qcompile.passes.fold_input_scale import FoldInputScale
from qcompile.passes.fold_stride import FoldStride
from qcompile.passes.fold_weights import FoldWeights
from qcompile.passes.fuse_gelu import FuseGelu
from qcompile.passes.fuse_layer_norm import FuseLayerNorm
from qcompile.passes.fuse_linear import FuseLinear
from qcompile.passes.fuse_pad import FusePad
from qcompile.passes.fuse_silu import FuseSilu
from qcompile.passes.hold_codes import HoldCodes
from qcompile.passes.hold_floats import HoldFloats
from qcompile.passes.infer_shapes import InferShapes
from qcompile.passes.inline_functions import InlineFunctions
from qcompile.passes.insert_block_dequantize import InsertBlockDequantize
from qcompile.passes.insert_matmul_nbits import InsertMatmulNbits
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.passes.lower_opset import LowerOpset
from qcompile.passes.name_values import NameValues
from qcompile.passes.own_constants import OwnConstants
from qcompile.passes.pad_channels import PadChannels
from qcompile.passes.remove_identities import RemoveIdentities
from qcompile.passes.rescale_channels import RescaleChannels
from qcompile.passes.round_floats import RoundFloats
from qcompile.passes.settle_reshapes import SettleReshapes
from qcompile.passes.simplify_nodes import SimplifyNodes
from qcompile.passes.soften_masks import SoftenMasks
from qcompile.passes.split_outliers import SplitOutliers
from qcompile.passes.widen_halves import WidenHalves
from qcompile.plan import Plan

WIDENING: tuple[GraphPass, ...] = (
    InlineFunctions(),
    ConvertOpset(),
    NameValues(),
    InferShapes(),
    WidenHalves(),
    RemoveIdentities(),
)
"""The passes that let a model in half precision compute in float32, for schemes of codes."""

DEQUANTIZING: tuple[GraphPass, ...] = (
    InlineFunctions(),
    ConvertOpset(),
    NameValues(),
    InferShapes(),
    ExpandQlinear(),
    DequantizeGraph(),
)
"""The passes that give back floats, for a model that is quantized already."""


def dequantizing(given: Given) -> list[GraphPass]:
    """Return these passes; the grids that they find go to ``given``."""
    last = DequantizeGraph(given=given)
    return [last if step.name == last.name else step for step in DEQUANTIZING]


CANONICAL: tuple[GraphPass, ...] = (
    InlineFunctions(),
    ConvertOpset(),
    NameValues(),
    CleanUp(),
    InferShapes(),
    RemoveIdentities(),
    FoldConstants(),
    SimplifyNodes(),
    RemoveIdentities(),
    CleanUp(),
    NameValues(),
    SettleReshapes(),
    InferShapes(),
    FoldWeights(),
    FoldBatchNorm(),
    FusePad(),
    FuseGelu(),
    FuseLayerNorm(),
    CleanUp(),
    InferShapes(),
    NameValues(),
)

LOWERING: dict[str, tuple[GraphPass, ...]] = {
    "ort-cpu": (
        FuseSilu(),
        ExpandPrelu(),
        FlattenTokens(),
        FuseLinear(),
        OwnConstants(),
        NameValues(),
    ),
    "ort-mobile": (ExpandPrelu(), FlattenTokens(), FuseLinear(), OwnConstants(), NameValues()),
}
"""Target to the passes that bring the canonical graph into the form its int8 kernels want."""


def lowering(target: str, scheme: str) -> tuple[GraphPass, ...]:
    """Return the passes that serve a target; float arithmetic takes the canonical graph."""
    return () if scheme in ("weight-only", "fp16", "bf16") else LOWERING.get(target, ())


PREPARING: tuple[GraphPass, ...] = (RescaleChannels(), AbsorbBias(), SplitOutliers())
"""The passes that apply the remedies of a plan to the float graph, before ranges are found."""

QUANTIZING: tuple[GraphPass, ...] = (
    CorrectBias(),
    InsertQdq(),
    FoldStride(),
    PadChannels(),
    AverageCodes(),
    FenceFloatNodes(),
    DivideRows(),
    DynamicMatmul(),
)
"""The passes that write a plan into the graph; they take the plan as an argument."""


def dynamic(plan: Plan) -> list[GraphPass]:
    """Return the passes that write a plan whose activations are rounded while running.

    Args:
        plan: Of scheme int8-dynamic.
    """
    return [*([DivideRows(plan=plan)] if plan.remedies.by_row else []), DynamicMatmul(plan=plan)]


WEIGHT_ONLY: tuple[GraphPass, ...] = (
    FoldInputScale(),
    InsertMatmulNbits(),
    InsertBlockDequantize(),
    HoldCodes(),
)
"""The passes that write solved weights into the graph; they take plan and weights as arguments."""

HALVING: tuple[GraphPass, ...] = (SoftenMasks(), CastFloats(), HoldFloats(), RoundFloats())
"""The passes for half precision; the last one simulates what the others make."""

FITTING: tuple[GraphPass, ...] = (LowerOpset(),)
"""The passes that fit a graph to a runtime that knows older operators only."""

ALL: tuple[GraphPass, ...] = (
    *WIDENING,
    *DEQUANTIZING,
    *CANONICAL,
    *(step for steps in LOWERING.values() for step in steps),
    *PREPARING,
    *QUANTIZING,
    *WEIGHT_ONLY,
    *HALVING,
    *FITTING,
)

"""The passes in the order in which they run; the order is the documentation."""

from qcompile.graph.protocol import GraphPass
from qcompile.passes.clean_up import CleanUp
from qcompile.passes.convert_opset import ConvertOpset
from qcompile.passes.dynamic_matmul import DynamicMatmul
from qcompile.passes.expand_prelu import ExpandPrelu
from qcompile.passes.fence_float_nodes import FenceFloatNodes
from qcompile.passes.flatten_tokens import FlattenTokens
from qcompile.passes.fold_batch_norm import FoldBatchNorm
from qcompile.passes.fold_constants import FoldConstants
from qcompile.passes.fold_weights import FoldWeights
from qcompile.passes.fuse_gelu import FuseGelu
from qcompile.passes.fuse_layer_norm import FuseLayerNorm
from qcompile.passes.fuse_linear import FuseLinear
from qcompile.passes.fuse_pad import FusePad
from qcompile.passes.fuse_silu import FuseSilu
from qcompile.passes.infer_shapes import InferShapes
from qcompile.passes.inline_functions import InlineFunctions
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.passes.name_values import NameValues
from qcompile.passes.own_constants import OwnConstants
from qcompile.passes.pad_channels import PadChannels
from qcompile.passes.remove_identities import RemoveIdentities
from qcompile.passes.settle_reshapes import SettleReshapes
from qcompile.passes.simplify_nodes import SimplifyNodes

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
}
"""Target to the passes that bring the canonical graph into the form its kernels want."""

QUANTIZING: tuple[GraphPass, ...] = (
    InsertQdq(),
    PadChannels(),
    FenceFloatNodes(),
    DynamicMatmul(),
)
"""The passes that write a plan into the graph; they take the plan as an argument."""

ALL: tuple[GraphPass, ...] = (
    *CANONICAL,
    *(step for steps in LOWERING.values() for step in steps),
    *QUANTIZING,
)

"""Which operators ONNX Runtime's CUDA provider has kernels for, and in which floating-point types.

From ``docs/OperatorKernels.md`` of onnxruntime (commit 001d12d2, of early 2026, read in November
2026) and the registrations of its sources; no GPU was asked. Later releases only add to it. What is
uncertain is marked so. Types of integers are not listed: what computes shapes runs on the CPU
anyway, which ONNX Runtime chooses by itself.
"""

from collections.abc import Mapping

CONTRIB = "com.microsoft"

_ALL = frozenset({"float32", "float16", "bfloat16"})
_NO_BFLOAT16 = frozenset({"float32", "float16"})
_FLOAT32 = frozenset({"float32"})
_HALVES = frozenset({"float16", "bfloat16"})

_STANDARD: Mapping[frozenset[str], str] = {
    _ALL: """
        Abs Add And Attention AveragePool Cast Compress Concat ConcatFromSequence ConstantOfShape
        Conv Div Dropout Erf Exp Expand Flatten Gather GatherElements GatherND Gelu Gemm
        HardSigmoid HardSwish Identity If IsInf IsNaN LayerNormalization Loop MatMul MatMulInteger
        Max Min Mod Mul Neg Not Or Pow RMSNormalization ReduceSum Relu Reshape ReverseSequence
        RotaryEmbedding Scan Scatter ScatterElements ScatterND SequenceAt SequenceConstruct
        SequenceEmpty SequenceErase SequenceInsert SequenceLength Shape Sigmoid Sign
        SimplifiedLayerNormalization Size Slice Softmax Split Sqrt Squeeze Sub Sum Tanh
        TensorScatter Tile Transpose Trilu Unsqueeze Where Xor
    """,
    _NO_BFLOAT16: """
        ArgMax ArgMin BatchNormalization Ceil Clip ConvTranspose Cos CumSum DepthToSpace
        DequantizeLinear Einsum Elu Equal Floor GRU GlobalAveragePool GlobalMaxPool Greater
        GreaterOrEqual InstanceNormalization LRN LSTM LeakyRelu Less LessOrEqual Log LogSoftmax
        MaxPool NonZero OneHot PRelu Pad QuantizeLinear RNN RandomNormal RandomNormalLike
        RandomUniform RandomUniformLike Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
        ReduceMax ReduceMean ReduceMin ReduceProd ReduceSumSquare Resize Round Selu Shrink Sin
        Softplus Softsign SpaceToDepth ThresholdedRelu TopK Upsample
    """,
    # NonMaxSuppression is registered in the sources, but not listed in the document: uncertain.
    _FLOAT32: "EyeLike GridSample NonMaxSuppression Range RoiAlign",
}
_CONTRIB: Mapping[frozenset[str], str] = {
    _ALL: """
        Attention BiasDropout BiasGelu BitmaskBiasDropout BitmaskDropout FastGelu FusedMatMul
        GatherBlockQuantized Gelu GemmFloat8 MatMulBnb4 MatMulNBits MoE MultiHeadAttention
        QuickGelu RotaryEmbedding SkipLayerNormalization SkipSimplifiedLayerNormalization
        TransposeMatMul Trilu UnfoldTensor
    """,
    _NO_BFLOAT16: """
        BeamSearch BiasAdd BiasSoftmax BiasSplitGelu ComplexMul ComplexMulConj DecoderAttention
        DecoderMaskedMultiHeadAttention DecoderMaskedSelfAttention DequantizeLinear
        EmbedLayerNormalization GatedRelativePositionBias GemmaRotaryEmbedding GreedySearch
        GroupNorm Inverse Irfft LongformerAttention NhwcConv PackedAttention
        PackedMultiHeadAttention QAttention QuantizeLinear RelativePositionBias RemovePadding
        RestorePadding Rfft Sampling SkipGroupNorm WhisperBeamSearch
    """,
    _FLOAT32: """
        ConvTransposeWithDynamicPads DynamicTimeWarping FusedConv GridSample NGramRepeatBlock
        QOrderedAttention QOrderedGelu QOrderedMatMul
    """,
    _HALVES: "GroupQueryAttention PagedAttention QMoE SparseAttention",
}

KERNELS: Mapping[tuple[str, str], frozenset[str]] = {
    (domain, op): types
    for domain, table in (("", _STANDARD), (CONTRIB, _CONTRIB))
    for types, names in table.items()
    for op in names.split()
}
"""Domain and operator to the floating-point types of its kernels; no entry: no kernel."""

LATE: Mapping[str, int] = {
    "Pad": 19,
    **dict.fromkeys(("ConstantOfShape", "Flatten", "Identity", "If", "Loop", "Scan", "Size"), 21),
    **dict.fromkeys(("Reshape", "Shape", "Squeeze", "Transpose", "Unsqueeze"), 21),
    **dict.fromkeys(("ConvTranspose", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"), 22),
}
"""Operator to the version of its schema that CUDA kernels were registered for only late.

A kernel serves the versions that it names, no later ones (onnxruntime issues 26065, 26393, 27102
and 27729); pull requests of September 2025 (26075) and March 2026 (27708, 27710, 27728, 27733)
added them.
"""

LATE_UNTIL = "April 2026"
"""Releases before that may lack kernels of ``LATE``; which release has which is uncertain."""

NBITS = (4, 8)
"""Bits of MatMulNBits; the kernel reads any other number as 4 (its source, commit 01b814bd)."""

NBITS_GROUPS = (16, 32, 64, 128)
"""Group sizes that its product with few rows reads directly; others are unpacked in every run."""

NBITS_MULTIPLE = 8
"""Of its rows and columns, for the same."""

"""Operators for which TensorRT's ONNX parser has no importer, by their names (it ignores domains).

Sources: onnx-tensorrt's table of operators for TensorRT 10.15, and what the parser of TensorRT-RTX
1.7.1 answers to ``supports_operator``; the tests ask an installed parser again.
"""

INTEGER = frozenset(
    {
        *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"),
        *("QGemm", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearSigmoid"),
        *("QLinearLeakyRelu", "QLinearSoftmax", "QLinearGlobalAveragePool"),
        *("QLinearAveragePool", "QLinearReduceMean", "QLinearWhere", "QAttention"),
        *("QEmbedLayerNormalization", "QOrderedMatMul", "DynamicQuantizeMatMul"),
        *("DynamicQuantizeLSTM", "MatMulIntegerToFloat", "MatMulInteger16"),
    }
)
"""Arithmetic on codes, as integer graphs of ONNX and ONNX Runtime write it."""

FUSED = frozenset(
    {
        *("FusedMatMul", "FusedGemm", "FusedConv", "NhwcConv", "NhwcMaxPool", "TransposeMatMul"),
        *("FusedMatMulActivation", "BiasGelu", "FastGelu", "QuickGelu", "BiasAdd"),
        *("BiasSplitGelu", "BiasSoftmax", "BiasDropout", "SkipLayerNormalization"),
        *("EmbedLayerNormalization", "GroupNorm", "SkipGroupNorm", "RelativePositionBias"),
        *("DecoderMaskedMultiHeadAttention", "DecoderMaskedSelfAttention", "PackedAttention"),
        *("PackedMultiHeadAttention", "PagedAttention", "SparseAttention", "LongformerAttention"),
        *("GemmaRotaryEmbedding", "GatedRelativePositionBias", "RemovePadding", "RestorePadding"),
        *("MoE", "BeamSearch", "GreedySearch", "Sampling", "NGramRepeatBlock"),
    }
)
"""What ONNX Runtime's optimizer makes of several standard operators."""

FEW_BITS = frozenset({"MatMulNBits", "QMoE", "MatMulBnb4", "MatMulFpQ4", "GatherBlockQuantized"})
"""Contrib operators on packed weights; the parser knows some of them, but only with a plugin."""

ABSENT = frozenset(
    {
        *("AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot"),
        *("BitwiseOr", "BitwiseXor", "CenterCropPad", "Col2Im", "Compress", "CumProd", "DFT"),
        *("ConcatFromSequence", "Det", "ImageDecoder", "MaxRoiPool", "MaxUnpool"),
        *("MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss", "Optional"),
        *("OptionalGetElement", "OptionalHasElement", "RegexFullMatch", "SequenceAt"),
        *("SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert"),
        *("SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence"),
        *("StringConcat", "StringNormalizer", "StringSplit", "SwiGLU", "TfIdfVectorizer"),
        "Unique",
    }
)
"""Standard operators."""

RTX_ONLY = frozenset(
    {
        *("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"),
        *("MultiHeadAttention", "GroupQueryAttention"),
    }
)
"""Contrib operators that TensorRT-RTX's parser knows and TensorRT's table lacks."""

RTX_ABSENT = frozenset({"DeformConv"})
"""A plugin in TensorRT, which TensorRT-RTX does not have."""

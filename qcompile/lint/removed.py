"""Names of TensorRT 10's Python API that TensorRT 11 lacks, each with what to do instead.

Found by comparing the bindings of 10.x with those of 11.4 and of TensorRT-RTX 1.7.1.
"""

_TYPES = "types come from the network alone: put casts and Q/DQ into the ONNX model"
_QDQ = "calibration is gone: put Q/DQ into the ONNX model"
_CACHE = "use the editable timing cache"

MEMBERS: dict[str, dict[str, str]] = {
    "NetworkDefinitionCreationFlag": {"EXPLICIT_BATCH": "call create_network() without it"},
    "BuilderFlag": {
        **dict.fromkeys(("FP16", "BF16", "INT8", "FP8", "INT4", "FP4"), _TYPES),
        **dict.fromkeys(("OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"), _TYPES),
        "REJECT_EMPTY_ALGORITHMS": _CACHE,
        "WEIGHTLESS": "its name is STRIP_PLAN now",
    },
    "TacticSource": dict.fromkeys(
        ("CUBLAS", "CUBLAS_LT", "CUDNN"), "these libraries are not used any more: leave it out"
    ),
}
"""Members of enumerations."""

CLASSES: dict[str, str] = {
    **dict.fromkeys(("IInt8Calibrator", "IInt8LegacyCalibrator", "IInt8MinMaxCalibrator"), _QDQ),
    **dict.fromkeys(("IInt8EntropyCalibrator", "IInt8EntropyCalibrator2"), _QDQ),
    **dict.fromkeys(("CalibrationAlgoType", "QuantizationFlag"), _QDQ),
    **dict.fromkeys(("IAlgorithm", "IAlgorithmContext", "IAlgorithmIOInfo"), _CACHE),
    **dict.fromkeys(("IAlgorithmSelector", "IAlgorithmVariant"), _CACHE),
    "IStreamReader": "derive from IStreamReaderV2",
}
"""Classes of the module."""

ATTRIBUTES: dict[str, str] = {
    **dict.fromkeys(
        ("int8_calibrator", "set_calibration_profile", "get_calibration_profile"), _QDQ
    ),
    **dict.fromkeys(("set_dynamic_range", "reset_dynamic_range", "dynamic_range"), _QDQ),
    **dict.fromkeys(("quantization_flags", "get_quantization_flag"), _QDQ),
    **dict.fromkeys(("set_quantization_flag", "clear_quantization_flag"), _QDQ),
    **dict.fromkeys(("set_output_type", "reset_output_type", "output_type_is_set"), _TYPES),
    **dict.fromkeys(("reset_precision", "precision_is_set", "compute_precision"), _TYPES),
    **dict.fromkeys(
        ("platform_has_fast_fp16", "platform_has_fast_int8", "platform_has_tf32"),
        "decide by the device's compute capability",
    ),
    "algorithm_selector": _CACHE,
    "device_memory_size": "its name is device_memory_size_v2 now",
    "get_device_memory_size_for_profile": "its name ends in _v2 now",
    "weight_streaming_budget": "its name is weight_streaming_budget_v2 now",
    "minimum_weight_streaming_budget": "use get_weight_streaming_automatic_budget()",
    "create_execution_context_without_device_memory": (
        "call create_execution_context(ExecutionContextAllocationStrategy.USER_MANAGED)"
    ),
    "all_shape_inputs_specified": "call infer_shapes(); it returns the missing ones",
    "supports_model": "call supports_model_v2()",
    "parse_with_weight_descriptors": "call load_model_proto(), load_initializer(), "
    "parse_model_proto()",
}
"""Attributes and methods with names that nothing else has."""

ASSIGNED: dict[str, str] = {"precision": _TYPES}
"""Attributes with common names, that count where a type of TensorRT's is assigned to them."""

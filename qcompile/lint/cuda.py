"""The lint of ONNX Runtime's CUDA provider, and of TensorRT's in front of it.

Kernels are those of ``targets.cuda_kernels``. What the TensorRT provider cannot parse it leaves to
the CUDA provider, so nothing that TensorRT refuses is an error there.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, get_args

import onnx.defs
import onnx_ir as ir

from qcompile.graph.walk import all_nodes, is_constant, is_op
from qcompile.lint.operands import PRODUCTS, weighted_nodes
from qcompile.lint.operators import INTEGER
from qcompile.lint.qdq import data, dtype, input_of, label, opset_of, qdq_nodes, scale, spelled
from qcompile.lint.rule import Finding, Place, Rule, Setting, Severity, findings
from qcompile.lint.tensorrt import check_model
from qcompile.lint.typed import infer
from qcompile.progress import Progress
from qcompile.targets.cuda_kernels import (
    CONTRIB,
    KERNELS,
    LATE,
    LATE_UNTIL,
    NBITS,
    NBITS_GROUPS,
    NBITS_MULTIPLE,
)

Provider = Literal["cuda", "tensorrt"]
PROVIDERS: tuple[Provider, ...] = get_args(Provider)

_FLOATS = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
}
_CODES = frozenset(
    {
        *(ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4),
        *(ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2),
    }
)
"""What Q and DQ have CUDA kernels for."""
_BFLOAT16_ON_CPU = frozenset({"Clip"})
"""Operators without a CUDA kernel in bfloat16 that ONNX Runtime 1.31 has on CPU."""
_OWN_DOMAINS = frozenset({"", CONTRIB})
_SOURCE = "docs/OperatorKernels.md of onnxruntime, early 2026"


def check_cuda(
    model: ir.Model, provider: Provider, setting: Setting, progress: Progress
) -> list[Finding]:
    """Return everything that breaks a rule of a provider, in the order of the rules.

    Args:
        model: Any model; types and shapes are written down where they can be inferred.
        provider: cuda, or tensorrt: then TensorRT's rules are checked as well.
        setting: What TensorRT's rules are checked for.
        progress: Hears of tensors whose type or shape is not known.
    """
    if provider == "tensorrt":
        refused = [_left_to_cuda(finding) for finding in check_model(model, setting, progress)]
        return refused + findings(model, setting, BESIDE_TENSORRT)
    infer(model)
    return findings(model, setting, RULES)


def _left_to_cuda(finding: Finding) -> Finding:
    """Return what a rule of TensorRT means where another provider takes what it refuses."""
    if finding.severity is not Severity.ERROR:
        return finding
    if finding.rule == "L39":  # dynamic axes without shapes
        what = f"{finding.what}; else the engine is built anew whenever a shape is new"
        return replace(finding, severity=Severity.WARNING, what=what)
    what = f"{finding.what}; left to the CUDA provider, which cuts the graph in pieces"
    return replace(finding, severity=Severity.FLOAT, what=what)


def _own_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the nodes that run: not those that ONNX Runtime folds into constants."""
    for node, _ in all_nodes(model):
        known = node.domain in _OWN_DOMAINS and not is_op(node, "Constant")
        if known and not (node.inputs and all(map(is_constant, filter(None, node.inputs)))):
            yield node


def _float_types(node: ir.Node) -> set[str]:
    """Return the floating-point types that a node touches; Cast and Q/DQ have several by right."""
    if is_op(node, "Cast") or node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
        return set()
    values = (*node.inputs, *node.outputs)
    return {_FLOATS[v.dtype] for v in values if v is not None and v.dtype in _FLOATS}


def _lacking(node: ir.Node) -> set[str]:
    """Return the types of a node in which its operator has no kernel."""
    return _float_types(node) - KERNELS.get((node.domain, node.op_type), frozenset())


def _no_kernel(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node in _own_nodes(model):
        if (node.domain, node.op_type) in KERNELS:
            continue
        hint = ""
        if node.op_type in INTEGER:
            hint = "; the provider computes on codes in MatMulInteger alone: give it halves instead"
        yield Place(
            label(node),
            f"{node.op_type} has no CUDA kernel: it runs on the CPU, and its tensors are copied "
            f"there and back{hint}",
        )


def _no_half_kernel(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node in _own_nodes(model):
        lacking = _lacking(node)
        has_others = (node.domain, node.op_type) in KERNELS
        if lacking and has_others and not _is_refused(node):
            yield Place(
                label(node),
                f"{node.op_type} has no CUDA kernel in {' or '.join(sorted(lacking))}: it runs on "
                "the CPU, in float32",
            )


def _refused_bfloat16(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node in _own_nodes(model):
        if _is_refused(node):
            yield Place(
                label(node),
                f"no provider has {node.op_type} in bfloat16: the model does not load; keep it in "
                f"float32 (--exclude-op {node.op_type})",
            )


def _is_refused(node: ir.Node) -> bool:
    """Say whether the CPU cannot stand in: it takes float16 between casts, but no bfloat16."""
    return "bfloat16" in _lacking(node) and node.op_type not in _BFLOAT16_ON_CPU


def _float_products(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for found in weighted_nodes(model):
        if found.data.dequantize is not None:
            yield Place(
                label(found.node),
                f"{found.node.op_type} reads {spelled(found.data.codes)} activations: the CUDA "
                "provider dequantizes them and computes in float; int8 takes --ep tensorrt, or "
                "leave the activations in half precision",
            )
        elif found.weight.dequantize is not None and found.node.op_type not in PRODUCTS:
            yield Place(
                label(found.node),
                f"the weights of {found.node.op_type} are dequantized in every run: few bits pay "
                "in MatMul and Gemm alone",
            )


def _codes_without_kernel(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node in qdq_nodes(model):
        made = node.outputs[0] if node.op_type == "QuantizeLinear" else data(node)
        kinds = (dtype(made), dtype(scale(node)))
        if kinds[0] is not None and kinds[0] not in _CODES:
            yield Place(
                label(node),
                f"{node.op_type} of {spelled(kinds[0])} has no CUDA kernel: it runs on the CPU",
            )


def _bfloat16_scale(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node in qdq_nodes(model):
        if dtype(scale(node)) is ir.DataType.BFLOAT16:
            yield Place(
                label(node),
                f"no provider has {node.op_type} with a scale in bfloat16: the model does not "
                "load; store the scale in float32 or float16",
            )


def _unsigned_product(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node, _ in all_nodes(model):
        if is_op(node, "MatMulInteger") and ir.DataType.UINT8 in map(dtype, node.inputs[:2]):
            yield Place(
                label(node),
                "MatMulInteger on CUDA takes int8 by int8: with uint8 it runs on the CPU",
            )


def _nbits(model: ir.Model) -> Iterator[tuple[ir.Node, dict[str, int]]]:
    """Yield the products with weights of few bits, and their attributes."""
    for node, _ in all_nodes(model):
        if (node.domain, node.op_type) == (CONTRIB, "MatMulNBits"):
            defaults = {"bits": 4, "accuracy_level": 0, "block_size": 0, "N": 0, "K": 0}
            yield node, {key: node.attributes.get_int(key, n) for key, n in defaults.items()}


def _odd_bits(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node, has in _nbits(model):
        if has["bits"] not in NBITS:
            yield Place(
                label(node),
                f"weights of {has['bits']} bits: the CUDA kernel knows 4 and 8, and reads others "
                "as 4",
            )


def _level(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node, has in _nbits(model):
        if has["accuracy_level"] == 4:
            yield Place(
                label(node),
                "accuracy_level 4 (int8 activations) is ignored on CUDA: results differ from those "
                "on CPU; set it to 0",
            )


def _unpacked(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node, has in _nbits(model):
        odd = [name for name in ("N", "K") if has[name] % NBITS_MULTIPLE]
        if has["block_size"] not in NBITS_GROUPS:
            sizes = ", ".join(map(str, NBITS_GROUPS))
            why = f"groups of {has['block_size']} (it reads {sizes})"
        elif odd:
            why = f"{odd[0]} = {has[odd[0]]} (a multiple of {NBITS_MULTIPLE} is wanted)"
        elif input_of(node, 4) is not None:
            why = "an order of columns (g_idx)"
        else:
            continue
        yield Place(
            label(node), f"{why}: the weights are unpacked in every run, no kernel reads them as is"
        )


def _late_kernel(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    opset = opset_of(model)
    found: dict[str, list[ir.Node]] = {}
    for node in _own_nodes(model):
        if not node.domain and node.op_type in LATE and opset >= LATE[node.op_type]:
            found.setdefault(node.op_type, []).append(node)
    for op, nodes in found.items():
        version = onnx.defs.get_schema(op, opset, "").since_version
        more = f" ({len(nodes)} nodes)" if len(nodes) > 1 else ""
        yield Place(
            label(nodes[0]),
            f"{op} of version {version}{more}: releases of onnxruntime-gpu from before "
            f"{LATE_UNTIL} may have no CUDA kernel for it and run it on the CPU",
        )


RULES = (
    Rule(
        "C01",
        "every operator has a CUDA kernel",
        Severity.WARNING,
        _SOURCE,
        _no_kernel,
    ),
    Rule(
        "C02",
        "every operator has a CUDA kernel in the types that it computes in",
        Severity.FLOAT,
        f"{_SOURCE}; the casts around float16: experiment, onnxruntime 1.31 on CPU",
        _no_half_kernel,
    ),
    Rule(
        "C03",
        "what has no CUDA kernel in bfloat16 has one on the CPU",
        Severity.ERROR,
        f"{_SOURCE}; experiment, onnxruntime 1.31 on CPU",
        _refused_bfloat16,
    ),
    Rule(
        "C04",
        "weighted operators read no 8-bit activations",
        Severity.FLOAT,
        "sources of onnxruntime, August 2026: its QDQ rules for CUDA are of MatMulNBits alone",
        _float_products,
    ),
    Rule(
        "C05",
        "codes have 4 or 8 bits, or are fp8",
        Severity.WARNING,
        _SOURCE,
        _codes_without_kernel,
    ),
    Rule(
        "C06",
        "scales of Q and DQ are float32 or float16",
        Severity.ERROR,
        f"{_SOURCE}; experiment, onnxruntime 1.31 on CPU",
        _bfloat16_scale,
    ),
    Rule(
        "C07",
        "MatMulInteger multiplies int8 by int8",
        Severity.WARNING,
        _SOURCE,
        _unsigned_product,
    ),
    Rule(
        "C08",
        "MatMulNBits has 4 or 8 bits",
        Severity.ERROR,
        "its CUDA source, 2026",
        _odd_bits,
    ),
    Rule(
        "C09",
        "MatMulNBits has no accuracy level 4",
        Severity.NUMERICS,
        "its CUDA source, 2026",
        _level,
    ),
    Rule(
        "C10",
        "MatMulNBits has groups, rows and columns that its kernel reads directly",
        Severity.WARNING,
        "its CUDA source, 2026",
        _unpacked,
    ),
    Rule(
        "C11",
        "the operator's version is one that older releases have CUDA kernels for",
        Severity.WARNING,
        "onnxruntime issues 26065, 26393, 27102, 27729; uncertain which release has which",
        _late_kernel,
    ),
)
"""Those of the CUDA provider alone."""


def _beside_tensorrt(model: ir.Model, _setting: Setting) -> Iterator[Place]:
    for node, _ in _nbits(model):
        yield Place(
            label(node),
            "MatMulNBits is not TensorRT's: the CUDA provider computes it, and the graph is cut in "
            "pieces; take --ep cuda, or --target tensorrt --int4",
        )


BESIDE_TENSORRT = (
    Rule(
        "C12",
        "no node is left to the CUDA provider",
        Severity.WARNING,
        "TensorRT's parser takes MatMulNBits with a plugin alone",
        _beside_tensorrt,
    ),
)
"""Those of the TensorRT provider, beside TensorRT's own."""

"""Lowering the opset: golden cases, and that a node's meaning is never changed by it."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx.defs import get_all_schemas_with_history
from onnx.reference import ReferenceEvaluator

from qcompile.passes.infer_shapes import InferShapes
from qcompile.passes.lower_opset import LowerOpset
from tests.passes.golden import (
    case_id,
    cases,
    check_contract,
    check_describes_itself,
    check_golden,
    read,
)
from tests.passes.tools import prepared, random_feeds, relative_l2, session

CASES = cases(["lower-opset"])


def parsed(body: str, opset: int) -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["" : {opset}]> {body}'
    return ir.from_proto(onnx.parser.parse_model(text))


@pytest.mark.parametrize("path", CASES, ids=case_id)
def test_golden(path: Path, update_golden: bool) -> None:
    step = LowerOpset()
    check_golden(path, prepared(read(path)[1], step), step, update=update_golden)


@pytest.mark.parametrize("path", CASES, ids=case_id)
def test_contract(path: Path) -> None:
    model = prepared(read(path)[1], LowerOpset())
    check_contract(model, LowerOpset())
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.parametrize("path", CASES, ids=case_id)
def test_outputs_are_the_same_bit_for_bit(path: Path) -> None:
    model = prepared(read(path)[1], LowerOpset())
    feeds = random_feeds(model)
    before = session(model).run(None, feeds)
    LowerOpset()(model)
    assert relative_l2(before, session(model).run(None, feeds)) == 0.0


def test_describes_itself() -> None:
    check_describes_itself(LowerOpset)


@pytest.mark.parametrize(
    ("body", "opset", "reasons"),
    [
        (
            "g (float[2] x) => (float[2] y) { a = Gelu(x) y = Swish(a) }",
            24,
            {
                "opset 19: Gelu is not there yet": 1,
                "opset 19: Swish is not there yet": 1,
                **{f"opset {n}: Swish is not there yet": 1 for n in range(20, 24)},
            },
        ),
        (
            "g (bfloat16[1, 1, 3] x, bfloat16[1, 1, 1] w) => (bfloat16[] y) { y = Conv(x, w) }",
            22,
            {f"opset {n}: Conv takes no tensor(bfloat16)": 1 for n in (19, 20, 21)},
        ),
        (
            "g (float x, float s) => (int16 y) { y = QuantizeLinear<output_dtype = 5>(x, s) }",
            21,
            {f"opset {n}: QuantizeLinear has no attribute output_dtype": 1 for n in (19, 20)},
        ),
        (
            """g (float[1, 4, 2] x, float[4] s, float[4] b) => (float[1, 4, 2] y)
            { y = GroupNormalization<num_groups = 2>(x, s, b) }""",
            21,
            {f"opset {n}: GroupNormalization meant something else": 1 for n in (19, 20)},
        ),
    ],
    ids=["new", "type", "attribute", "meaning"],
)
def test_refuses_with_the_operator(body: str, opset: int, reasons: dict[str, int]) -> None:
    step = LowerOpset()
    model = prepared(parsed(body, opset), step)
    assert not step(model).modified
    assert model.opset_imports[""] == opset
    assert dict(step.refusals) == reasons


def test_says_what_forbade_the_opset_that_was_asked_for() -> None:
    step = LowerOpset()
    model = prepared(parsed("g (float[2] x) => (float[2] y) { y = Gelu(x) }", 23), step)
    assert step(model).modified
    assert model.opset_imports[""] == 20
    assert dict(step.refusals) == {"opset 19: Gelu is not there yet": 1}


def test_other_domains_are_no_matter() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
    g (float[2] x) => (float[2] y) <float[2] a>
    { a = com.microsoft.QuickGelu(x) y = Identity(a) }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    InferShapes()(model)
    assert LowerOpset()(model).modified
    assert model.opset_imports == {"": 19, "com.microsoft": 1}


UNARY = sorted(
    {
        schema.name
        for schema in get_all_schemas_with_history()
        if schema.domain == ""
        and schema.since_version > 19
        and (schema.min_input, schema.max_input) == (1, 1)
        and (schema.min_output, schema.max_output) == (1, 1)
        and not any(attribute.required for attribute in schema.attributes.values())
        and any("tensor(float)" in c.allowed_type_strs for c in schema.type_constraints)
        and schema.name not in {"RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
        and schema.name not in {"ConstantOfShape", "GlobalLpPool", "Swish", "Det"}
    }
)
"""Of one float tensor, no chance, and known to the reference."""


@pytest.mark.parametrize("op", UNARY)
def test_operators_with_a_newer_version_mean_the_same(op: str) -> None:
    """Compared in ONNX's reference, whose implementations are chosen by opset."""
    body = f"g (float[4, 4] x) => (float[4, 4] y) {{ z = {op}(x) y = Cast<to = 1>(z) }}"
    model = parsed(body, 23)
    model.graph.outputs[0].shape = None
    InferShapes()(model)
    feeds = random_feeds(model)
    with np.errstate(all="ignore"):
        before = ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)
        assert LowerOpset()(model).modified
        after = ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)

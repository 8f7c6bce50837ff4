"""Rules that are left out on purpose, and graphs for which the rules are not even imported."""

import onnx_ir as ir
import pytest
from hypothesis import given
from onnxscript.rewriter import RewritePass

from qcompile.graph.edit import changes
from qcompile.graph.runner import run_passes
from qcompile.graph.walk import all_nodes
from qcompile.passes import CANONICAL, simplify_nodes
from qcompile.passes.infer_shapes import InferShapes
from qcompile.passes.simplify_nodes import SimplifyNodes, may_match
from qcompile.source.onnx_file import load_model
from tests.assets import asset, needs_assets
from tests.passes.test_canonical import MODELS
from tests.passes.test_numeric import chains
from tests.passes.tools import prepared


def test_no_rule_has_a_pattern_of_several_outputs():
    """The rewriter looks for those in a time that grows with the square of the nodes."""
    rules = simplify_nodes.rules()
    assert [r.name for r in rules if not r._target_pattern.has_single_output_node] == []


def test_every_rule_is_asked_for():
    """A rule that a new onnxscript adds must not be passed over."""
    operators = {str(rule._target_pattern.output_node.op) for rule in simplify_nodes.rules()}
    assert operators == set(simplify_nodes.MATCHING)


def check_passed_over(model: ir.Model) -> None:
    """Where no node may match, the rules change nothing."""
    if not any(may_match(node) for node, _ in all_nodes(model)):
        assert not changes(model, RewritePass(simplify_nodes.rules()))


@given(chains())
def test_what_is_passed_over_has_no_match(model):
    check_passed_over(prepared(model, SimplifyNodes()))


@needs_assets
@pytest.mark.parametrize("name", MODELS)
def test_what_is_passed_over_in_real_models_has_no_match(name):
    model = load_model(asset("models", f"{name}.onnx"))
    for step in CANONICAL:
        run_passes(model, [step], holds=frozenset(step.needs))
        if isinstance(step, InferShapes):
            check_passed_over(model)

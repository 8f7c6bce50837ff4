"""The target table as data: complete, and without contradictions. test_insert_qdq runs it."""

import onnx.defs
import pytest

from qcompile.errors import RecipeError
from qcompile.plan import GROUP_SIZES
from qcompile.recipe import Recipe
from qcompile.runtime.host import host_cpu
from qcompile.targets import TARGETS, target_named
from qcompile.targets.onnx_std import ONNX_STD
from qcompile.targets.ort_cpu import ORT_CPU
from qcompile.targets.target import OperatorRule, Role

RULES = [*ORT_CPU.static.values(), *ORT_CPU.dynamic.values()]


def test_targets_by_name():
    assert target_named("ort-cpu") is ORT_CPU
    assert target_named("onnx") is ONNX_STD
    assert list(TARGETS) == [target.name for target in TARGETS.values()]
    with pytest.raises(RecipeError, match=r"--target toaster: no such target; there are: ort-cpu"):
        target_named("toaster")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.op)
def test_rules_fit_the_operators_of_the_standard(rule: OperatorRule):
    schema = onnx.defs.get_schema(rule.op, ORT_CPU.opset)
    inputs = schema.max_input
    indices = [*rule.activations, *(i for i in (rule.weight, rule.bias) if i is not None)]
    assert all(index < inputs for index in indices)
    assert (rule.weight is not None) == (rule.role is Role.WEIGHTED)
    assert (rule.role in (Role.WEIGHTED, Role.FOLLOWER)) == bool(rule.kernels)


def test_tables_are_keyed_by_operator_and_do_not_contradict_each_other():
    for table in (ORT_CPU.static, ORT_CPU.dynamic):
        assert all(op == rule.op for op, rule in table.items())
    assert not set(ORT_CPU.costs) & set(ORT_CPU.static)
    assert all(reason.strip() for reason in ORT_CPU.costs.values())
    assert set(ORT_CPU.rules("int8-dynamic")) < set(ORT_CPU.rules("int8"))


def test_every_instruction_set_has_types():
    choices = Recipe.model_fields["cpu"].annotation
    assert set(ORT_CPU.devices) == {"avx2", "avx512", "vnni", "arm"}
    assert all(cpu in str(choices) for cpu in ORT_CPU.devices)
    assert host_cpu() in ORT_CPU.devices
    for cpu in ORT_CPU.devices:
        types = ORT_CPU.types("int8", cpu)
        assert types.why
        assert types.reduce_range == (cpu in ("avx2", "avx512")), "vpmaddubsw saturates there"
        assert types.activation == ("int8" if cpu == "arm" else "uint8")


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_tables_of_weights_in_few_bits(target):
    few = target.weight_only
    assert set(few.widths) == {2, 3, 4, 8}
    for bits, width in few.widths.items():
        assert bits <= width.stored
        assert set(width.group_sizes) <= set(GROUP_SIZES)
        assert set(width.levels) <= set(few.levels)
        assert width.why
    assert {op: rule.op for op, rule in few.operators.items()} == {op: op for op in few.operators}
    for rule in few.operators.values():
        assert rule.role is Role.STORED
        assert onnx.defs.get_schema(rule.op, target.opset).max_input > rule.weight
    assert not set(few.costs) & set(few.operators)
    assert target.rules("weight-only") is few.operators


def test_levels_are_there_where_an_operator_has_them():
    for target in TARGETS.values():
        nbits = target.weight_only.form == "nbits"
        assert all(bool(width.levels) == nbits for width in target.weight_only.widths.values())
    assert {bits: width.levels for bits, width in ORT_CPU.weight_only.widths.items()} == {
        2: (4,),
        3: (4, 0),
        4: (4, 0),
        8: (4,),
    }


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic"])
def test_standard_onnx_has_no_int8(scheme):
    with pytest.raises(RecipeError, match=f"--target onnx has no scheme {scheme}: .*--int4"):
        ONNX_STD.rules(scheme)

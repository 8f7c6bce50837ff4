"""Which nodes int8 pays for: as selecting anew after each round finds it, but in linear time."""

import cProfile
import pstats
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qcompile.frontend import load
from qcompile.graph.walk import consumers, only_consumer
from qcompile.graph.work import multiply_adds
from qcompile.planning.pays import select_paying
from qcompile.planning.region import Region
from qcompile.planning.select import Selection, select
from qcompile.planning.wishes import Wishes
from qcompile.progress import Silent
from qcompile.targets.ort_cpu import ORT_CPU
from qcompile.targets.target import Output, Target
from tests.assets import asset, needs_assets
from tests.planning.tools import graph_of, normal

PEELED = ("espnetv2_s2_voc", "mobilenetv1_025_vww", "squeezenet10_dc_imagenet", "yolox_nano_coco")
"""Models that lose layers in several rounds, at one of the limits at least."""

PICTURE = "float[1, 16, 12, 12]"
WEIGHTS = {
    "dense": normal(1, 16, 16, 1, 1),
    "wide": normal(2, 16, 16, 3, 3),
    "thin": normal(3, 16, 1, 3, 3),
    "square": normal(4, 12, 12),
    "zero": np.zeros((), np.float32),
    "six": np.full((), 6, np.float32),
    "below": np.full((), -1, np.float32),
    "start": np.asarray([4]),
    "end": np.asarray([16]),
    "two": np.asarray([2]),
}
BRANCH = """[{v}] {v} = If (flag) <
  then_branch = t () => (float[1, 16, 12, 12] {v}t) {{ {v}t = Exp({a}) }},
  else_branch = e () => (float[1, 16, 12, 12] {v}e) {{ {v}e = Conv({b}, dense) }}
>"""
SPLIT = """[{v}] {v}p, {v}q = Split <axis=1, num_outputs=2> ({a})
[{v}j] {v} = Concat <axis=1> ({v}q, {v}p)"""
JOIN = """[{v}] {v}j = Concat <axis=2> ({a}, {b})
[{v}s] {v} = Slice({v}j, start, end, two)"""
THIN = "[{v}] {v} = Conv <group=16, pads=[1,1,1,1]> ({a}, thin)"
DENSE = "[{v}] {v} = Conv({a}, dense)"
RELU = "[{v}] {v} = Relu({a})"
TRANSPOSE = "[{v}] {v} = Transpose <perm=[0,1,3,2]> ({a})"
KINDS = (
    (
        DENSE,
        "[{v}] {v} = Conv <pads=[1,1,1,1]> ({a}, wide)",
        THIN,
        "[{v}] {v} = MatMul({a}, square)",
    ),
    (RELU, "[{v}] {v} = Clip({a}, zero, six)"),
    (TRANSPOSE, SPLIT),
    ("[{v}] {v} = Add({a}, {b})", "[{v}] {v} = Mul({a}, {a})", "[{v}] {v} = Sigmoid({a})", JOIN),
    ("[{v}] {v} = Exp({a})", "[{v}] {v} = Clip({a}, below, six)", BRANCH),
)
"""Weighted nodes, absorbed ones, carriers, followers, floats; each kind is drawn as often."""


def plain_loop(model: ir.Model, target: Target, wishes: Wishes) -> Selection:
    """The definition: select, leave out what does not pay, and again, until all do."""
    while True:
        selection = select(model, target, "int8", wishes)
        found = {node.name or "": plain_verdict(node, selection, target) for node in model.graph}
        poor = {name: reason for name, reason in found.items() if reason}
        if not poor:
            return selection
        wishes = replace(wishes, nodes={**poor, **wishes.nodes})


def plain_verdict(node: ir.Node, selection: Selection, target: Target) -> str:
    rule = target.static.get(node.op_type)
    if not selection.is_int8(node) or rule is None or rule.weight is None:
        return ""
    data, end = node.inputs[0], node.outputs[0]
    assert data is not None
    crossing = 0.0
    if not selection.is_int8(data.producer()):
        crossing = elements(data) / sum(selection.is_int8(reader) for reader, _ in consumers(data))
    if rule.output is Output.CODES:
        reader = only_consumer(end)
        if reader is not None and (reader.name or "") in selection.absorbed:
            end = reader.outputs[0]
        readers = [selection.is_int8(reader) for reader, _ in consumers(end)]
        crossing += elements(end) if end.is_graph_output() or not all(readers) else 0
    ratio = multiply_adds(node) / crossing if crossing else target.pays_from
    if ratio >= target.pays_from:
        return ""
    return (
        f"int8 would not pay: {ratio:.3g} multiply-adds for each element that is rounded or "
        f"converted back for it (it pays from {target.pays_from:g})"
    )


def elements(value: ir.Value) -> float:
    assert value.shape is not None
    return float(np.prod([dim for dim in value.shape if isinstance(dim, int)]))


@st.composite
def graphs(draw: st.DrawFn) -> ir.Model:
    """Three to 24 operators over pictures of one size, most of them near each other."""
    lines, values = [], ["x"]
    for index in range(draw(st.integers(3, 24))):
        near = st.sampled_from((values[-1], *values[-3:]))
        text = draw(st.sampled_from(KINDS).flatmap(st.sampled_from))
        lines.append(text.format(a=draw(near), b=draw(near), v=f"v{index}"))
        values.append(f"v{index}")
    outputs = {values[-1], *draw(st.lists(st.sampled_from(values[1:]), max_size=2))}
    return picture_graph("\n".join(lines), ", ".join(sorted(outputs)))


def picture_graph(body: str, outputs: str) -> ir.Model:
    used = {name: array for name, array in WEIGHTS.items() if name in body}
    return graph_of(f"bool flag, {PICTURE} x", body, outputs, **used)


def line(*texts: str) -> ir.Model:
    """Each operator reads the one before it."""
    names = ["x", *(f"v{i}" for i in range(len(texts)))]
    body = [text.format(a=names[i], v=names[i + 1]) for i, text in enumerate(texts)]
    return picture_graph("\n".join(body), names[-1])


WISHES = st.builds(
    Wishes,
    patterns=st.lists(st.sampled_from(["v3", "v7", "v1?"]), max_size=1).map(tuple),
    operators=st.lists(st.sampled_from(["Add", "Transpose", "MatMul"]), max_size=1).map(tuple),
    first=st.booleans(),
    last=st.booleans(),
)


@settings(max_examples=100)
@given(graphs(), WISHES, st.sampled_from([1.0, 5.0, 13.0, 24.0, 60.0, 200.0]))
@example(line(*[THIN, RELU] * 8), Wishes(), 24.0)
@example(line(DENSE, TRANSPOSE, RELU, THIN), Wishes(), 10.0)
def test_the_same_as_selecting_anew_after_each_round(model, wishes, pays_from):
    target = replace(ORT_CPU, pays_from=pays_from)
    assert select_paying(model, target, "int8", wishes) == plain_loop(model, target, wishes)


@needs_assets
@pytest.mark.assets
@pytest.mark.parametrize("name", PEELED)
def test_the_same_on_real_models(name):
    path: Path = asset("models", f"{name}.onnx")
    model = load(path, "ort-cpu", "int8", threads=2, dump_dir=None, progress=Silent()).model
    for pays_from in (5.0, 24.0, 100.0, 1000.0):
        target = replace(ORT_CPU, pays_from=pays_from)
        assert select_paying(model, target, "int8", Wishes()) == plain_loop(model, target, Wishes())


@settings(max_examples=100)
@given(graphs(), st.randoms(use_true_random=False))
def test_a_region_keeps_what_selecting_anew_finds(model, random):
    """... whichever weighted nodes leave, in whatever order, until none is left."""
    selection = select(model, ORT_CPU, "int8", Wishes())
    region = Region(model.graph, ORT_CPU.static, selection)
    gone: dict[str, str] = {}
    layers = [node for node in model.graph if node.op_type in ("Conv", "MatMul")]
    while weighted := [node for node in layers if region.is_int8(node)]:
        leaving = random.sample(weighted, random.randint(1, min(2, len(weighted))))
        before = {node.name for node in model.graph if region.is_int8(node)}
        left = region.remove(leaving)
        gone |= {node.name or "": "told to" for node in leaving}
        fresh = select(model, ORT_CPU, "int8", Wishes(nodes=gone))
        kept = {node.name for node in model.graph if fresh.is_int8(node)}
        assert {node.name for node in model.graph if region.is_int8(node)} == kept
        assert sorted(node.name or "" for node in left) == sorted(before - kept)
        assert region.absorbed == fresh.absorbed
        for value in (v for node in model.graph for v in node.outputs):
            uses = [fresh.is_int8(reader) for reader, _ in consumers(value)]
            assert region.readers[value] == sum(uses)


def test_a_chain_of_layers_is_peeled_in_linear_time():
    calls = {length: calls_for(line(*[THIN] * length)) for length in (50, 200)}
    assert calls[200] < 5 * calls[50]  # selecting anew for each layer takes 14 times as many


def calls_for(model: ir.Model) -> int:
    """Count the function calls that selecting takes; nothing of the chain is left in int8."""
    profile = cProfile.Profile()
    found = profile.runcall(select_paying, model, ORT_CPU, "int8", Wishes())
    assert {entry.precision for entry in found.nodes.values()} == {"float"}
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.errors import EngineError
from qcompile.runtime.layer_dump import EngineLayer, EngineTensor, parse_layers

# As TensorRT for RTX 1.7.1 writes it; names are long, so lines are put together here.
TENSOR = (
    " {{ Name: {name}, Dimensions: [{shape}], Strides: [1], StrideOrder: [0], "
    "Datatype: {dtype}, Format: (Linear) Row major linear format }}"
)
END = "\n\nI/O Tensors:\n Name: x, IOMode: Input\n\nEngine Metadata:\n Multi-Device: Disabled"


def tensor(name, dtype, *shape):
    return TENSOR.format(name=name, dtype=dtype, shape=",".join(map(str, shape)))


def line(name="l", kind="kgen", inputs=(), constants=(), outputs=(), tactic="t", nodes=()):
    metadata = "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes)
    lists = (",".join(tensors) for tensors in (inputs, constants, outputs))
    return (
        "Name: {}, LayerType: {}, Inputs: [{}], Constants: [{}], Outputs: [{}], "
        "TacticName: {}, StreamId: 0, Metadata: {}"
    ).format(name, kind, *lists, tactic, metadata)


def dump(*lines):
    return "Layers:\n" + "\n".join(lines) + END


def test_a_layer():
    text = line(
        "conv_myl0_1",
        "correlation",
        inputs=[tensor("a", "Int8", 1, 32, -1, 16)],
        constants=[tensor("w", "Int8", 32, 32, 3, 3), tensor("s", "Float", 32)],
        outputs=[tensor("y", "BFloat16")],
        tactic="",
        nodes=["conv", "x_DQ"],
    )
    (layer,) = parse_layers(dump(text))
    assert layer == EngineLayer(
        name="conv_myl0_1",
        kind="correlation",
        nodes=("conv", "x_DQ"),
        inputs=(EngineTensor("a", "int8", (1, 32, -1, 16)),),
        constants=(EngineTensor("w", "int8", (32, 32, 3, 3)), EngineTensor("s", "fp32", (32,))),
        outputs=(EngineTensor("y", "bf16", ()),),
        tactic="",
    )


def test_layers_without_tensors_and_an_engine_without_layers():
    layers = parse_layers(dump(line("jump", "cjmp"), line("shapes", "shape_call")))
    assert [(layer.name, layer.kind, layer.inputs) for layer in layers] == [
        ("jump", "cjmp", ()),
        ("shapes", "shape_call", ()),
    ]
    assert parse_layers("Layers:\n\nI/O Tensors:\n Name: x") == ()


def test_unknown_kinds_types_and_fields():
    text = line("l", "quantum", inputs=[tensor("a", "Fp6E3M2", 4)], nodes=["n"])
    text = text.replace(", StreamId: 0", ", StreamId: 0, Mood: [fine, thanks], Kernel: [3,3]")
    (layer,) = parse_layers(dump(text))
    assert (layer.kind, layer.inputs[0].dtype, layer.nodes) == ("quantum", "Fp6E3M2", ("n",))


def test_names_that_look_like_the_format():
    evil = "odd]name[ONNX Layer: x], Constants: [ {"
    text = line(evil, inputs=[tensor(evil, "Half", 2)], nodes=[evil, "a | t (then_branch)"])
    (layer,) = parse_layers(dump(text))
    assert layer.name == evil
    assert layer.inputs == (EngineTensor(evil, "fp16", (2,)),)
    assert layer.nodes == (evil, "a | t (then_branch)")


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\n\x1f"), max_size=20).filter(
    lambda name: not any(mark in name for mark in (", LayerType: ", ", Dimensions: ["))
)


@given(
    name=NAMES,
    nodes=st.lists(NAMES, max_size=4, unique=True),
    tensors=st.lists(NAMES, max_size=4),
    shape=st.lists(st.integers(-1, 9999), max_size=5),
)
def test_any_name_survives(name, nodes, tensors, shape):
    listed = [tensor(one, "Int4", *shape) for one in tensors]
    text = line(name, inputs=listed, constants=listed, outputs=listed, nodes=nodes)
    first, second = parse_layers(dump(text, text))
    wanted = tuple(EngineTensor(one, "int4", tuple(shape)) for one in tensors)
    assert first == second
    assert first.name == name
    assert first.inputs == first.constants == first.outputs == wanted
    assert first.nodes == tuple(nodes)


GOOD = line("l", inputs=[tensor("a", "Float", 2, 3)])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Building engine",
        dump("[Kernel] conv"),
        dump(GOOD.replace("LayerType", "Kind")),
        dump(GOOD.replace("Datatype", "Type")),
        dump(GOOD.replace("[2,3]", "[two,3]")),
        dump(GOOD.replace("Inputs: [", "Inputs: {")),
        dump(GOOD[: len(GOOD) // 2]),
        dump(GOOD, "and so on"),
    ],
)
def test_another_form_is_an_error_that_says_so(text):
    with pytest.raises(EngineError, match="form that is not known"):
        parse_layers(text)

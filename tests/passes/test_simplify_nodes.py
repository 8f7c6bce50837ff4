"""Rules that are left out on purpose."""

from qcompile.passes.simplify_nodes import SimplifyNodes
from tests.planning.tools import graph_of


def test_slices_are_not_merged_for_that_takes_the_square_of_the_nodes():
    body = """
    zero = Constant <value_ints=[0]> ()
    two = Constant <value_ints=[2]> ()
    four = Constant <value_ints=[4]> ()
    axis = Constant <value_ints=[1]> ()
    left = Slice(x, zero, two, axis)
    right = Slice(x, two, four, axis)
    y = Sub(left, right)
    """
    model = graph_of("float[3, 4] x", body)
    SimplifyNodes()(model)
    assert [node.op_type for node in model.graph if node.op_type != "Constant"] == [
        "Slice",
        "Slice",
        "Sub",
    ]

"""Rules that are left out on purpose."""

from qcompile.passes import simplify_nodes


def test_no_rule_has_a_pattern_of_several_outputs():
    """The rewriter looks for those in a time that grows with the square of the nodes."""
    rules = simplify_nodes._RULES
    assert [r.name for r in rules if not r._target_pattern.has_single_output_node] == []

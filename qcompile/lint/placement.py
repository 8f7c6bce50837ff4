"""The rules of where Q/DQ stand, in order."""

from qcompile.lint.attention import L32
from qcompile.lint.factors import L21, L26, L36, L41, L47, L48
from qcompile.lint.neighbours import L28, L29, L30, L37, L40

RULES = (L21, L26, L28, L29, L30, L32, L36, L37, L40, L41, L47, L48)

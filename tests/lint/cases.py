"""The form in which test modules give a model that breaks a rule, and one that does not.

Each module of rules has two dictionaries from a rule's name to its cases, ``BREAKS`` and ``KEEPS``;
``test_rules.py`` joins and checks them, and ``test_rtx.py`` hands them to the real builder.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import onnx_ir as ir

from qcompile.lint.rule import Setting


@dataclass(frozen=True)
class Case:
    """A model for a rule.

    Attributes:
        make: Makes the model.
        name: Tells the case from others, where the function's name does not.
        setting: What it is checked for.
        also: Other rules that such a model must break, too.
        builds: Whether TensorRT for RTX builds it, where that is not what the rule says.
    """

    make: Callable[[], ir.Model]
    setting: Setting = field(default_factory=Setting)
    name: str = ""
    also: frozenset[str] = frozenset()
    builds: bool | None = None

    @property
    def label(self) -> str:
        return self.name or self.make.__name__


Cases = dict[str, tuple[Case, ...]]

"""What all sections of a report are made of."""

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def by_name(value: dict[str, Any]) -> dict[str, Any]:
    """Return the entries in the order of their names."""
    return dict(sorted(value.items()))


Number = Annotated[float | None, BeforeValidator(_finite)]
"""A measured number; infinite and undefined ones become None."""

Interval = tuple[Number, Number]
"""Low and high end of a 95 % confidence interval."""

Counts = Annotated[dict[str, int], AfterValidator(by_name)]
"""Name to count, sorted by name, so that equal counts give equal text."""


class Section(BaseModel):
    """Base of all parts of a report: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

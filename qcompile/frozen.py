"""The base of plain data that is read from files or written to them."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Checked when it is made, never changed; unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

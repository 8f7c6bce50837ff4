"""How numbers and names look in print: one function a kind of value."""

from qcompile.report.section import Interval, Number

UNKNOWN = "-"
KEEP = "\N{NO-BREAK SPACE}"
"""A space inside a value, where no line may end; ``report.wrapped`` prints it as a space."""


def plain(text: str) -> str:
    """Return the text without control characters: names in a model are untrusted."""
    return "".join(c if c.isprintable() or c == KEEP else "\N{REPLACEMENT CHARACTER}" for c in text)


def size(count: int) -> str:
    """Return a number of bytes in the largest decimal unit that keeps it at 1 or above."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f}{KEEP}{unit}"
    return f"{count}{KEEP}B"


def number(value: Number, form: str = ".4g") -> str:
    """Return a measured number; ``-`` where there is none."""
    return UNKNOWN if value is None else format(value, form)


def percent(value: Number) -> str:
    """Return a share of 0 to 1 in percent."""
    return UNKNOWN if value is None else f"{100 * value:.2f}{KEEP}%"


def interval(ends: Interval | None, form: str = ".3g") -> str:
    """Return a 95 % confidence interval as ``[low, high]``; empty where there is none."""
    return "" if ends is None else f"[{number(ends[0], form)},{KEEP}{number(ends[1], form)}]"


def times(ratio: Number) -> str:
    """Return a speed ratio: ``2.9x``."""
    return UNKNOWN if ratio is None else f"{ratio:.2f}x"


def decibels(value: Number) -> str:
    """Return a signal to noise ratio: ``31.2 dB``."""
    return UNKNOWN if value is None else f"{value:.1f}{KEEP}dB"


def milliseconds(value: Number) -> str:
    """Return a time in milliseconds, three digits."""
    if value is None:
        return UNKNOWN
    return f"{value:.3g}{KEEP}ms" if value < 1000 else f"{value:.0f}{KEEP}ms"


def seconds(value: float) -> str:
    """Return a time in seconds, or minutes from two on."""
    return f"{value:.1f}{KEEP}s" if value < 120 else f"{value / 60:.1f}{KEEP}min"


def counted(count: int, noun: str) -> str:
    """Return ``1 node`` or ``3 nodes``."""
    return f"{count:,}{KEEP}{noun}" if count == 1 else f"{count:,}{KEEP}{noun}s"


def listed(counts: dict[str, int]) -> str:
    """Return counts as ``Conv 19, Add 9``, the most frequent first."""
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return plain(", ".join(f"{name}{KEEP}{count}" for name, count in order))

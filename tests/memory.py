"""Peak memory of this process alone: ``ru_maxrss`` starts with that of the process that forked."""

from pathlib import Path


def peak_kib() -> int:
    """Return the largest resident size since the program began, in KiB (Linux)."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

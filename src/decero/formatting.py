"""Format durations and counts for people."""

import math


def duration(seconds: float) -> str:
    """Format seconds in the largest unit that fits: `1.5 h`, `12.0 s`, `30 ms`; `–` for NaN."""
    if math.isnan(seconds):
        return "–"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 0.1 or seconds == 0 else f"{1000 * seconds:.3g} ms"


def count(number: int) -> str:
    """Format a number of parameters: `4.4 M`; `–` for 0."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number) if number else "–"


def byte_size(size: float) -> str:
    """Format bytes with three digits: `1.32 GB`, with powers of ten."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"

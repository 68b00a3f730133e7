"""Numbers in words for people."""

from __future__ import annotations

import math
from typing import Any


def scaled(value: float, unit: str = "") -> str:
    """``1.23 G``: three digits, and the largest power of a thousand that is not above the value."""
    for power, letter in ((4, "T"), (3, "G"), (2, "M"), (1, "k")):
        if abs(value) >= 999.5 * 1000.0 ** (power - 1):
            part = value / 1000.0**power
            return f"{part:.{2 if abs(part) < 9.995 else 1 if abs(part) < 99.95 else 0}f} {letter}{unit}"
    return f"{value:.3g} {unit}".strip()


def flops(value: float) -> str:
    """FLOPs, e.g. ``1.36 G``."""
    return scaled(value)


def bytes_of(value: float | None) -> str:
    """Bytes, e.g. ``512 MB`` (10^6); nothing for None."""
    return "" if value is None else scaled(value, "B")


def count(value: float | None) -> str:
    """A whole number with commas; nothing for None."""
    return "" if value is None else f"{value:,.0f}"


def significant(value: float | None) -> str:
    """A loss or a score to four decimals; nothing for None."""
    return "" if value is None else f"{value:.4f}"


def signed(value: float | None) -> str:
    """A difference of scores with its sign, to four decimals; nothing for None."""
    return "" if value is None else f"{value:+.4f}"


def span(low: float | None, high: float | None) -> str:
    """An interval of differences, ``[-0.0200, -0.0046]``; nothing for None."""
    return "" if low is None else f"[{signed(low)}, {signed(high)}]"


def probability(value: float | None) -> str:
    """A p-value to four decimals, or that it is smaller than that; nothing for None."""
    return "" if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def finite(value: Any) -> Any:
    """``value`` for JSON, which has no other numbers: with None for every number that is infinite or none, at any depth."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

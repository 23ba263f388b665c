"""Numbers as the report shows them."""

import math
from collections.abc import Sequence


def number(value: float | None, digits: int = 2) -> str:
    """A number with so many decimals; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.1e}"
    return text.replace("-", "−")


def percent(value: float | None) -> str:
    """A share in percent, with a space that does not break the line."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{100 * value:.1f}\u00a0%".replace("-", "−")


def count(value: int) -> str:
    """A number of things."""
    return f"{value:,}"


def small(value: float | None) -> str:
    """A q-value: few digits, and none below a thousandth."""
    return "< 0.001" if value is not None and value < 0.001 else number(value, 3)


def interval(values: Sequence[float | None], percentages: bool = False, digits: int = 2) -> str:
    """mean [low, high]; the mean alone where there is no interval"""
    mean, low, high = (percent(one) if percentages else number(one, digits) for one in values)
    return mean if low == high == "–" else f"{mean} [{low}, {high}]"

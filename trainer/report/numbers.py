"""Numbers in columns that they never burst."""

from __future__ import annotations


def fixed(number: float, digits: int, width: int, grouped: bool = False) -> str:
    """`number` with so many digits after the point, fewer where it would be wider than `width` (6
    or more), or else with an exponent. grouped: a comma between thousands."""
    comma = "," if grouped else ""
    forms = [f"{comma}.{kept}f" for kept in range(digits, -1, -1)] + [".1e", ".0e"]
    texts = [format(number, form) for form in forms]
    return next((text for text in texts if len(text) <= width), texts[-1])


def clock(seconds: float) -> str:
    """A duration, at most 8 wide for the next 27 years: 0:07, 2:05:09 or 12d03h."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 100:
        return f"{hours // 24}d{hours % 24:02d}h"
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

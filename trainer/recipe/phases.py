"""A value by phases, as a config writes it: `linear 0 to 2.2e-4 until 2000 steps`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from trainer.config.limits import Range, Text
from trainer.errors import ConfigError
from trainer.recipe.progress import Point, Progress

_SIZES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Phase:
    """first, last: values at its ends. by: sizes between them, for whole numbers. until: its end;
    None at that of the run."""

    text: str
    shape: str
    first: float
    last: float
    by: int
    until: Point | None

    def value(self, done: float) -> float:
        """At a share of the phase from 0 to 1: exactly `last` at 1."""
        if self.shape == "constant":
            return self.last
        share = (1 - math.cos(math.pi * done)) / 2 if self.shape == "cosine" else done
        return (1 - share) * self.first + share * self.last


@dataclass(frozen=True)
class Span:
    """A phase in its place. start, end: in the same unit."""

    phase: Phase
    start: int
    end: Point

    def value(self, after: Progress) -> float:
        """In the step that ends there: the last step of a ramp has its last value."""
        done = after.count(self.end.unit) - self.start
        return self.phase.value(min(1.0, done / max(1, self.end.count - self.start)))


@dataclass(frozen=True)
class Curve:
    """A value over a whole run."""

    spans: tuple[Span, ...]

    def at(self, before: Progress, after: Progress) -> float:
        """In the step between the two."""
        ahead = (span for span in self.spans if not span.end.reached(before))
        return next(ahead, self.spans[-1]).value(after)


def read_phases(key: str, texts: Sequence[str], syntax: Text, limit: Range) -> list[Phase]:
    """The phases that `key` has. limit: of the values. Raises ConfigError, in one line."""
    if not texts:
        raise ConfigError(f"{key} has no phase: give it one, or set it to null")
    phases = [_read(key, text, syntax) for text in texts]
    for phase in phases:
        if phase.first not in limit or phase.last not in limit:
            raise ConfigError(f"{key}: '{phase.text}': its values must be {limit}")
        last = phase is phases[-1]
        if last and phase.until is not None:
            raise ConfigError(
                f"{key}: '{phase.text}' is the last phase, which goes on to the end of the run: "
                "leave its `until` away, or add a phase"
            )
        if phase.until is None and not last:
            raise ConfigError(
                f"{key}: '{phase.text}' has no end, but is not the last phase: add to it `until N "
                "steps` or `until N tokens`"
            )
    return phases


def constant(value: float) -> list[Phase]:
    """One phase, from the start to the end of a run."""
    return [Phase(f"{value:g}", "constant", value, value, 0, None)]


def _read(key: str, text: str, syntax: Text) -> Phase:
    match = re.fullmatch(syntax.pattern, text)
    if match is None:
        raise ConfigError(f"{key} must be {syntax}, got {text!r}")
    found: dict[str, Any] = {"by": None} | match.groupdict()
    last = float(found["last"])
    until = None
    if found["unit"] is not None:
        count = Fraction(found["count"].replace("_", "")) * _SIZES[found["unit_size"]]
        if count.denominator > 1 or not 0 < count < 10**18:
            raise ConfigError(f"{key}: '{text}': the end must be a whole number from 1 to 10^18")
        until = Point(int(count), found["unit"])
    return Phase(
        text=text,
        shape=found["shape"] or "constant",
        first=last if found["first"] is None else float(found["first"]),
        last=last,
        by=int(found["by"] or 0),
        until=until,
    )

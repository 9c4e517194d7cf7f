"""The values of a run: one call records a value, and every sink gets it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

Reduction = Literal["mean", "sum", "max", "last"]
Value: TypeAlias = float | int | str | list[list[float]]


@dataclass(frozen=True)
class Recorded:
    """A value of one step, and how those of several steps make one; text has only "last"."""

    value: Value
    reduction: Reduction


Values: TypeAlias = Mapping[str, Recorded]


class Sink(Protocol):
    """Where values go: a file, a service, the console."""

    def write(self, step: int, values: Values) -> None:
        """Take all values of a finished step, counted from 0. Never fails the run."""

    def close(self) -> str | None:
        """Take no more; one line on where the values are, if that is not plain."""


@dataclass
class Metrics:
    """Collects the values of a step, then gives them to all sinks."""

    sinks: Sequence[Sink]
    _values: dict[str, Recorded] = field(default_factory=dict)

    def record(self, name: str, value: Value, reduction: Reduction = "mean") -> None:
        """Record a value of the step that is running, under a name of its own."""
        self._values[name] = Recorded(value, reduction)

    def end_step(self, step: int) -> None:
        """Hand over what was recorded since the last call."""
        values, self._values = self._values, {}
        for sink in self.sinks:
            sink.write(step, values)

    def close(self) -> list[str]:
        """Close all sinks; what they say at the end."""
        said = [sink.close() for sink in self.sinks]
        return [line for line in said if line is not None]


@dataclass
class Window:
    """Values of the steps since it was last emptied, one for each name."""

    _seen: dict[str, list[Recorded]] = field(default_factory=dict)

    def add(self, values: Values) -> None:
        for name, recorded in values.items():
            self._seen.setdefault(name, []).append(recorded)

    def reduced(self) -> dict[str, Value]:
        """One value for each name, over the steps that recorded it."""
        return {name: _reduce(seen) for name, seen in self._seen.items()}

    def empty(self) -> None:
        self._seen = {}


def _reduce(seen: list[Recorded]) -> Value:
    reduction = seen[-1].reduction
    if reduction == "last":
        return seen[-1].value
    stacked = np.array([recorded.value for recorded in seen], dtype=np.float64)
    over: dict[Reduction, Callable[..., Any]] = {"mean": np.mean, "sum": np.sum, "max": np.max}
    reduced: Value = over[reduction](stacked, axis=0).tolist()
    return reduced

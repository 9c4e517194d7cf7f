"""The values and events of a run: one call records one, and every sink gets it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from trainer.report.events import Event, EventKind

Reduction = Literal["mean", "sum", "max", "last"]
# A path is that of a picture in the run folder, from there.
Value: TypeAlias = float | int | str | Path | list[list[float]]


@dataclass(frozen=True)
class Recorded:
    """A value of one step, and how those of several steps make one; for text and pictures only
    "last" does."""

    value: Value
    reduction: Reduction


Values: TypeAlias = Mapping[str, Recorded]


class Sink(Protocol):
    """Where values go: a file, a service, the console."""

    def write(self, step: int, values: Values) -> None:
        """Take all values of a finished step, counted from 0. Never fails the run."""

    def event(self, event: Event) -> None:
        """Take what happened, at once. Never fails the run."""

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

    def event(self, kind: EventKind, step: int, text: str) -> None:
        """Hand over what happened at a step, as `Event` counts it, in one line for a person."""
        for sink in self.sinks:
            sink.event(Event(kind, step, " ".join(text.split())))

    def close(self) -> list[str]:
        """Close all sinks; what they say at the end."""
        said = [sink.close() for sink in self.sinks]
        return [line for line in said if line is not None]


@dataclass
class Window:
    """Values of the steps since it was last emptied, one for each name, however many steps."""

    _kept: dict[str, _Kept] = field(default_factory=dict)

    def add(self, values: Values) -> None:
        for name, recorded in values.items():
            if name in self._kept:
                self._kept[name].add(recorded.value)
            else:
                self._kept[name] = _Kept(recorded.value, recorded.reduction)

    def reduced(self) -> dict[str, Value]:
        """One value for each name, over the steps that recorded it."""
        return {name: kept.reduced() for name, kept in self._kept.items()}

    def empty(self) -> None:
        self._kept = {}


@dataclass
class _Kept:
    """What is kept of several values: their sum, their maximum or the last one."""

    value: Any
    reduction: Reduction
    count: int = 1

    def add(self, value: Value) -> None:
        self.count += 1
        if self.reduction == "last":
            self.value = value
        else:
            combine: Any = np.maximum if self.reduction == "max" else np.add
            self.value = combine(self.value, value, dtype=np.float64)

    def reduced(self) -> Value:
        if self.reduction == "last":
            return self.value
        array = np.asarray(self.value, dtype=np.float64)
        reduced: Value = (array / self.count if self.reduction == "mean" else array).tolist()
        return reduced

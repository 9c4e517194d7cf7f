"""Reading what a run has written, while it runs or long after, whole or not."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parallel.files.shown import printable
from trainer.errors import RunError
from trainer.report.events import ANEW, KINDS, LASTING, Event
from trainer.report.json_lines import FILE

_MOST_STEPS = 2**53  # exact as a float
_LARGEST = 1e100  # far beyond any value of a run; sums of such are still finite


@dataclass(frozen=True)
class Series:
    """One value over steps, counted from 1: both [n], steps ascending; NaN where not finite."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class RunLog:
    """What could be read of a run. name: as it was asked for. steps: the last one, counted from 1.
    skipped: lines that are neither a step nor an event. not_finite: values that are NaN, infinite
    or beyond 1e100. events: in the order in which they happened."""

    name: str
    steps: int
    series: dict[str, Series]
    skipped: int
    not_finite: int
    events: tuple[Event, ...] = ()

    def last(self, name: str) -> float | None:
        """The last finite value."""
        values = self._finite(name)
        return float(values[-1]) if values.size else None

    def least(self, name: str) -> float | None:
        values = self._finite(name)
        return float(values.min()) if values.size else None

    def mean(self, name: str) -> float | None:
        values = self._finite(name)
        return float(values.mean()) if values.size else None

    def total(self, name: str) -> float | None:
        values = self._finite(name)
        return float(values.sum()) if values.size else None

    def _finite(self, name: str) -> NDArray[np.float64]:
        series = self.series.get(name)
        values = np.empty(0) if series is None else series.values
        return values[np.isfinite(values)]


def read_run(path: Path) -> RunLog:
    """Read a run folder, or its metrics.jsonl. Where a step is there twice, the later line counts;
    what a restart or a rollback has made void does not, even where it is not there again yet.

    Raises RunError where there is no such file, or no step in it.
    """
    rows: dict[int, dict[str, float]] = {}
    events: list[Event] = []
    skipped = 0
    for line in _lines(path):
        row = _row(line)
        if row is None:
            skipped += 1
        elif isinstance(row, Event):
            rows, events = _after(row, rows, events)
        else:
            rows[int(row.pop("step")) + 1] = row
    if not rows:
        lines = skipped + len(events)
        what = f"none of its {lines} lines is one" if lines else "the file is empty"
        raise RunError(f"{printable(path)}: no step of a run is in it yet: {what}")
    steps = sorted(rows)
    columns: dict[str, tuple[list[int], list[float]]] = {}
    for step in steps:
        for name, value in rows[step].items():
            at, values = columns.setdefault(name, ([], []))
            at.append(step)
            values.append(value)
    series = {name: Series(*map(np.array, column)) for name, column in columns.items()}
    not_finite = sum(int((~np.isfinite(one.values)).sum()) for one in series.values())
    return RunLog(str(path), steps[-1], series, skipped, not_finite, tuple(events))


def short_names(runs: Sequence[RunLog]) -> list[str]:
    """What tells runs apart in little room: each one's folder, with as many of the folders that it
    lies in as it takes."""
    paths = [Path(os.path.abspath(run.name)) for run in runs]
    parts = [(path.parent if path.name == FILE else path).parts for path in paths]
    names = []
    for mine in parts:
        others = [theirs for theirs in parts if theirs != mine]
        kept = range(1, len(mine) + 1)
        unique = (n for n in kept if all(theirs[-n:] != mine[-n:] for theirs in others))
        names.append(str(Path(*mine[-next(unique, len(mine)) :])))
    return names


def _lines(path: Path) -> Iterator[str]:
    """The lines that are not empty, one at a time: a file may be larger than memory."""
    file = path
    try:
        file = path / FILE if path.is_dir() else path
        if file.exists() and not file.is_file():  # a pipe or a device might never end
            raise RunError(f"{printable(file)}: is not a file; give a run folder, runs/NAME")
        with open(file, "rb") as content:
            yield from (line.decode(errors="replace") for line in content if line.strip())
    except OSError as error:
        raise RunError(
            f"{printable(file)}: cannot be read: {error.strerror}; give a run folder, runs/NAME"
        ) from error


def _after(
    event: Event, rows: dict[int, dict[str, float]], events: list[Event]
) -> tuple[dict[int, dict[str, float]], list[Event]]:
    """What counts of the lines before an event, and the event."""
    if event.kind in ANEW:
        rows = {step: row for step, row in rows.items() if step <= event.step}
    if event.kind == "restart":
        events = [one for one in events if one.step < event.step or one.kind in LASTING]
    return rows, [*events, event]


def _row(line: str) -> dict[str, float] | Event | None:
    """The numbers of a step's line, the step among them; None where it is neither that nor an
    event."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    numbers = {name: _float(value) for name, value in row.items() if _is_number(value)}
    step = numbers.get("step", -1.0)
    if not (0 <= step < _MOST_STEPS and step == int(step)):
        return None
    if "event" not in row:
        return numbers
    kind, text = row["event"], row.get("text")
    return Event(kind, int(step), text) if kind in KINDS and isinstance(text, str) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _float(value: float | int) -> float:
    try:
        number = float(value)
    except OverflowError:
        return math.nan
    return number if abs(number) <= _LARGEST else math.nan

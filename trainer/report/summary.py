"""What is said of runs: one row each, for a person or as JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from parallel.files.shown import printable
from trainer.io.terminal import plain_console
from trainer.report.events import KINDS, name_of
from trainer.report.numbers import clock, fixed
from trainer.report.run_log import RunLog, short_names

_WIDTH = 80
_MOST_EVENTS = 5  # of a run that are written out
# Heading, key of `summary`, how a value is written.
_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("steps", "steps", partial(fixed, digits=0, width=9)),
    ("loss", "loss", partial(fixed, digits=4, width=6)),
    ("valid", "validation_loss", partial(fixed, digits=4, width=6)),
    ("best", "best_validation_loss", partial(fixed, digits=4, width=6)),
    ("bits/B", "validation_bits_per_byte", partial(fixed, digits=4, width=6)),
    ("norm", "gradient_norm", partial(fixed, digits=2, width=7)),
    ("tokens/s", "tokens_per_second", partial(fixed, digits=0, width=9, grouped=True)),
    ("time", "seconds", clock),
)


def summary(run: RunLog) -> dict[str, Any]:
    """Last values, None where there is none; tokens_per_second: all tokens over all seconds;
    events: each with its step counted from 1."""
    last = ("loss", "validation_loss", "validation_bits_per_byte", "gradient_norm", "load_max")
    return {
        "run": run.name,
        "steps": run.steps,
        **{name: run.last(name) for name in last},
        "best_validation_loss": run.least("validation_loss"),
        "tokens_per_second": _rate(run),
        "seconds": run.total("seconds"),
        "events": [
            {"event": event.kind, "step": event.step + 1, "text": event.text}
            for event in run.events
        ],
        "skipped_lines": run.skipped,
        "values_not_finite": run.not_finite,
    }


def show(runs: Sequence[RunLog]) -> None:
    """Print a table, then what happened to the runs and what could not be read."""
    console = plain_console()
    names = list(map(printable, short_names(runs)))
    for line in table(names, list(map(summary, runs))):
        console.print(line)
    for name, run in zip(names, runs):
        if notes := _notes(run):
            console.print(f"{name}: {', '.join(notes)}")
        happened = [event for event in run.events if event.kind != "checkpoint"]
        for event in happened[-_MOST_EVENTS:]:
            console.print(f"  {printable(event.line())}")


def _notes(run: RunLog) -> list[str]:
    """How many there are of what is worth a note."""
    events = Counter(event.kind for event in run.events)
    counts = [(events[kind], name_of(kind, events[kind])) for kind in KINDS]
    counts += [(run.skipped, "lines skipped"), (run.not_finite, "values not finite")]
    return [f"{count:,} {what}" for count, what in counts if count]


def table(names: Sequence[str], summaries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """At most 80 wide. A name that is too long for its column has a line of its own."""
    rows = [[heading for heading, _, _ in _COLUMNS]]
    for values in summaries:
        cells = ("-" if values[key] is None else text(values[key]) for _, key, text in _COLUMNS)
        rows.append(list(cells))
    widths = [max(map(len, column)) for column in zip(*rows)]
    room = _WIDTH - sum(width + 2 for width in widths)
    first = max([len("run"), *(len(name) for name in names if len(name) <= room)])
    for name, row in zip(["run", *names], rows):
        if len(name) > first:
            yield name
            name = ""
        yield name.ljust(first) + "".join(f"  {cell:>{w}}" for cell, w in zip(row, widths))


def _rate(run: RunLog) -> float | None:
    tokens, seconds = run.total("tokens"), run.total("seconds")
    if tokens and seconds:
        rate = tokens / seconds
        return rate if math.isfinite(rate) else None
    return run.mean("tokens_per_second")

"""What is said of runs: one row each, for a person or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from parallel.files.shown import printable
from trainer.io.terminal import plain_console
from trainer.report.run_log import RunLog
from trainer.report.step_table import clock

_COLUMNS = (  # heading, key of `summary`, format
    ("steps", "steps", "d"),
    ("loss", "loss", ".4f"),
    ("validation", "validation_loss", ".4f"),
    ("best", "best_validation_loss", ".4f"),
    ("bits/byte", "validation_bits_per_byte", ".4f"),
    ("norm", "gradient_norm", ".2f"),
    ("tokens/s", "tokens_per_second", ",.0f"),
)


def summary(run: RunLog) -> dict[str, Any]:
    """Last values, None where there is none; tokens_per_second is the mean over all steps, seconds
    are those of all steps together."""
    last = ("loss", "validation_loss", "validation_bits_per_byte", "gradient_norm", "load_max")
    return {
        "run": run.name,
        "steps": run.steps,
        **{name: run.last(name) for name in last},
        "best_validation_loss": run.least("validation_loss"),
        "tokens_per_second": _rate(run),
        "seconds": run.total("seconds"),
        "skipped_lines": run.skipped,
        "values_not_finite": run.not_finite,
    }


def show(runs: Sequence[RunLog]) -> None:
    """Print a table, then what could not be read."""
    console = plain_console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("run", overflow="fold")
    for heading, _, _ in (*_COLUMNS, ("time", "", "")):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in runs:
        values = summary(run)
        cells = [_cell(values[key], style) for _, key, style in _COLUMNS]
        seconds = values["seconds"]
        table.add_row(printable(run.name), *cells, "-" if seconds is None else clock(seconds))
    console.print(table)
    for run in runs:
        notes = [
            f"{count:,} {what}"
            for count, what in (
                (run.skipped, "lines skipped"),
                (run.not_finite, "values not finite"),
            )
            if count
        ]
        if notes:
            console.print(f"{printable(run.name)}: {', '.join(notes)}")


def _rate(run: RunLog) -> float | None:
    tokens, seconds = run.total("tokens"), run.total("seconds")
    if tokens and seconds:
        return tokens / seconds
    return run.mean("tokens_per_second")


def _cell(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)

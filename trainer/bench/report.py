"""A benchmark's report, as one JSON object or as a table for a person."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from trainer.bench.machine import about_machine, machine
from trainer.bench.results import Case, Clock, Report, Side
from trainer.bench.spread import Spread

CLOCKS: tuple[Clock, ...] = ("wall", "cpu")


@dataclass(frozen=True)
class Printed:
    """What a command prints: one JSON object, or a table and lines below it."""

    json: dict[str, Any]
    table: Table
    lines: tuple[str, ...]

    def show(self) -> None:
        # As wide as the table is, where the output is a file.
        console = Console() if Console().is_terminal else Console(width=100)
        console.print(self.table)
        for line in (*self.lines, about_machine()):
            console.print(line, highlight=False)


def printed(report: Report) -> Printed:
    """JSON has times in seconds per step, memory in MiB."""
    json = {
        "against": report.against,
        "ratio_of": report.ratio,
        "machine": machine(),
        "cases": [_case(report, case) for case in report.cases],
        "notes": list(report.notes),
    }
    return Printed(json, _table(report), tuple(_lines(report)))


def _table(report: Report) -> Table:
    with_memory = any(side.memory for case in report.cases for side in case.sides)
    table = Table(title=f"Tandem against {report.against}")
    table.add_column("case")
    table.add_column("side")
    for column in ("s/step", "processor s", "tokens/s", *(["peak MiB"] if with_memory else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for case in report.cases:
        for side in case.sides:
            row = [case.name if side is case.ours else "", side.name]
            row += [_shown(side.wall), _shown(side.cpu), f"{case.tokens / side.wall.median:,.0f}"]
            if with_memory:
                row.append(f"{side.memory.peak:,.0f}" if side.memory else "")
            table.add_row(*row)
        table.add_section()
    table.caption = "medians, and half the distance of the quartiles"
    return table


def _shown(spread: Spread) -> str:
    low, high = spread.quartiles
    return f"{spread.median:.3f} ±{(high - low) / 2 / spread.median:.0%}"


def _lines(report: Report) -> Iterator[str]:
    yield f"{report.ratio} of Tandem over that of the other side (quartiles), step by step:"
    for case in report.cases:
        wall, cpu = (report.ratio_of(case, clock) for clock in CLOCKS)
        yield f"  {case.name}: {_ratio(wall)} by the clock, {_ratio(cpu)} by processor time"
    for case in report.cases:
        agree = (f"{found.what} to {found.difference:.1e}" for found in case.agreements)
        yield f"{case.name}: the sides agree, {', '.join(agree)}"
    yield from report.notes


def _ratio(spread: Spread) -> str:
    low, high = spread.quartiles
    return f"{spread.median:.3f} ({low:.3f} to {high:.3f})"


def _case(report: Report, case: Case) -> dict[str, Any]:
    return {
        "name": case.name,
        "tokens_per_step": case.tokens,
        "sides": [_side(case, side) for side in case.sides],
        "ratio": {clock: report.ratio_of(case, clock).as_json() for clock in CLOCKS},
        "agreements": [asdict(found) for found in case.agreements],
    }


def _side(case: Case, side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "wall": side.wall.as_json(),
        "cpu": side.cpu.as_json(),
        "tokens_per_second": case.tokens / side.wall.median,
        "losses": list(side.losses),
        "memory": None if side.memory is None else asdict(side.memory),
    }

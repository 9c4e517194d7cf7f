"""A benchmark's report, as one JSON object or as a table for a person."""

from __future__ import annotations

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
        console = Console() if Console().is_terminal else Console(width=150)
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
    agree = (
        f"{case.name}: {found.what} agree to {found.difference:.1e}"
        for case in report.cases
        for found in case.agreements
    )
    return Printed(json, _table(report), (*agree, *report.notes))


def _table(report: Report) -> Table:
    with_memory = any(side.memory for case in report.cases for side in case.sides)
    table = Table(title=f"Tandem against {report.against}")
    table.add_column("case")
    table.add_column("side")
    columns = ["s/step", "processor s", "tokens/s", *(["peak MiB"] if with_memory else [])]
    for column in (*columns, report.ratio, "by processor"):
        table.add_column(column, justify="right")
    for case in report.cases:
        for side in case.sides:
            table.add_row(*_row(report, case, side, with_memory))
        table.add_section()
    table.caption = (
        f"medians (quartiles); {report.ratio} of Tandem over that of the other side, by the clock "
        "and by processor time, each step over the one taken beside it"
    )
    return table


def _row(report: Report, case: Case, side: Side, with_memory: bool) -> list[str]:
    ours = side is case.ours
    row = [case.name if ours else "", side.name, _shown(side.wall), _shown(side.cpu)]
    row.append(f"{case.tokens / side.wall.median:,.0f}")
    if with_memory:
        row.append(f"{side.memory.peak:,.0f}" if side.memory else "")
    for clock in CLOCKS:
        row.append(_shown(report.ratio_of(case, clock)) if ours else "1")
    return row


def _shown(spread: Spread) -> str:
    low, high = spread.quartiles
    return f"{spread.median:.3f} ({low:.3f}-{high:.3f})"


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

"""The preflight's result, as a table by node and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console
from rich.table import Table

from trainer.preflight.judge import RATES, Limits, Problem, median, scaled
from trainer.preflight.reading import Reading

_MOST_ROWS = 40


@dataclass(frozen=True)
class Result:
    """readings: of all ranks, by rank."""

    readings: Sequence[Reading]
    limits: Limits
    problems: Sequence[Problem]

    @property
    def line(self) -> str:
        """What is wrong, in one line."""
        more = f" (and {len(self.problems) - 1} more, see above)" * (len(self.problems) > 1)
        return f"{self.problems[0].line}{more}"

    def nodes(self) -> list[list[Reading]]:
        """The readings of each node."""
        return [list(ranks) for _, ranks in groupby(self.readings, lambda reading: reading.node)]


def show(result: Result, console: Console) -> None:
    """Nodes with problems come first; of very many others the first stand for the rest."""
    bad = {problem.node for problem in result.problems} - {None}
    nodes = sorted(result.nodes(), key=lambda ranks: ranks[0].node not in bad)
    table = Table(title=_title(result))
    for name in ("node", "host", "clock", *RATES, "room"):
        table.add_column(name, justify="left" if name == "host" else "right")
    for ranks in nodes[: max(_MOST_ROWS, len(bad))]:
        table.add_row(*_row(result, ranks), style="bold red" if ranks[0].node in bad else None)
    more = len(nodes) - table.row_count
    table.add_section()
    usual = {
        what: median([of(each) for each in result.readings]) for what, (of, _) in RATES.items()
    }
    for name, values in (("median", usual), ("stated", result.limits.stated)):
        if values:
            rates = (_shown(values.get(what), unit) for what, (_, unit) in RATES.items())
            table.add_row("", name, "", *rates, "")
    console.print(table)
    if more:
        console.print(f"and {more} more nodes, like these")
    for problem in result.problems:
        console.print(problem.line)
    if not result.problems:
        console.print("all nodes are alike")


def as_json(result: Result) -> dict[str, object]:
    """Rates in FLOP/s and bytes/s, of each rank of a node; times in seconds. A problem of all
    nodes has no number."""
    return {
        "passed": not result.problems,
        "problems": [{"node": each.node, "text": each.line} for each in result.problems],
        "limits": {
            "slow": result.limits.slow,
            "skew_seconds": result.limits.skew,
            "free_bytes": result.limits.free,
            "least": result.limits.least,
        },
        "stated": dict(result.limits.stated),
        "versions": dict(result.readings[0].versions),
        "environment": dict(result.readings[0].environment),
        "nodes": [
            {
                "node": ranks[0].node,
                "host": ranks[0].host,
                "ranks": [reading.rank for reading in ranks],
                "clock_ahead_seconds": ranks[0].clock,
                "product_flops": [reading.product for reading in ranks],
                "all_to_all_bytes_per_second": [reading.exchange for reading in ranks],
                "link_bytes_per_second": [reading.link for reading in ranks],
                "free_bytes": ranks[0].free,
            }
            for ranks in result.nodes()
        ],
    }


def _title(result: Result) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in result.readings[0].versions.items())
    return f"slowest rank of each node, % of the median of all ranks\nrank 0: {versions}"


def _shown(rate: float | None, unit: str) -> str:
    return "-" if rate is None else scaled(rate, unit)


def _row(result: Result, ranks: Sequence[Reading]) -> list[str]:
    row = [str(ranks[0].node), ranks[0].host, f"{round(ranks[0].clock, 3) + 0.0:+.3f} s"]
    for of, unit in RATES.values():
        known = [rate for reading in ranks if (rate := of(reading)) is not None]
        usual = median([of(reading) for reading in result.readings])
        if known and usual:
            row.append(f"{scaled(min(known), unit)} ({min(known) / usual:.0%})")
        else:
            row.append("-")
    return [*row, f"{ranks[0].free / 2**30:,.0f} GiB"]

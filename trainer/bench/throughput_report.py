"""What was measured, as one JSON object or as tables for a person."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from trainer.bench.exchange_times import ALL_TO_ALLS, MESSAGES, Mode, StepTimes, Times, Where
from trainer.bench.throughput import Measured, compare
from trainer.config.derived import mesh_of
from trainer.config.schema import Config

PLACES: tuple[Where, ...] = ("pairs", "lone")
CUDA_NOTE = (
    "on CUDA the host clock sees launches, not kernels: only step times are reported; use a "
    "profiler for the overlap"
)


def as_json(
    config: Config, measured: dict[Mode, Measured], link_rate: str | None
) -> dict[str, Any]:
    """One object; times in seconds per step, shares from 0 to 1, null where there is nothing."""
    comparison = compare(measured)
    return {
        "schedule": config.pipeline.schedule,
        "mesh": asdict(config.mesh),
        "world": mesh_of(config).world,
        "link_rate": link_rate,
        "data": {"tokens": "random", "seed": config.run.seed, "routing": "not forced to balance"},
        "modes": {mode: _mode(result) for mode, result in measured.items()},
        "comparison": None if comparison is None else asdict(comparison),
        "notes": _notes(measured),
    }


def show(config: Config, measured: dict[Mode, Measured], link_rate: str | None) -> None:
    """Print tables and what they mean."""
    # As wide as the tables are, where the output is a file.
    console = Console() if Console().is_terminal else Console(width=120)
    mesh = config.mesh
    console.print(
        f"{config.pipeline.schedule}, pipeline {mesh.pipeline} x expert-data {mesh.expert_data} x "
        f"expert {mesh.expert}; link {link_rate or 'not limited'}; random tokens, seed "
        f"{config.run.seed}, routing not forced to balance"
    )
    console.print(_steps_table(measured))
    for mode, result in measured.items():
        if result.times is not None and result.times.total(*PLACES).number:
            console.print(_exchange_table(mode, result.times))
    comparison = compare(measured)
    if comparison is not None:
        console.print(
            f"overlap on against off: step {comparison.speed_up:.3f} x as fast (medians); hidden "
            f"against off: {_percent(comparison.pairs_hidden)} of all-to-alls in pairs, "
            f"{_percent(comparison.all_hidden)} of all"
        )
    for note in _notes(measured):
        console.print(f"note: {note}")


def _notes(measured: dict[Mode, Measured]) -> list[str]:
    return [CUDA_NOTE] if any(result.times is None for result in measured.values()) else []


def _mode(result: Measured) -> dict[str, Any]:
    seconds = result.step_seconds
    return {
        "steps": len(seconds),
        "step_seconds": {
            "median": result.median_seconds,
            "min": min(seconds),
            "max": max(seconds),
            "all": seconds,
        },
        "tokens_per_second": result.tokens_per_second,
        "load_max_over_mean": result.load_max,
        "mean_over_ranks": None if result.times is None else _step_times(result.times),
        "by_rank": [_step_times(times) for times in result.by_rank],
    }


def _step_times(times: StepTimes) -> dict[str, Any]:
    return {
        "all_to_all": {
            "all": _times(times.total(*PLACES)),
            **{where: _times(times.total(where)) for where in PLACES},
            "by_kind": {
                where: {kind: _times(t) for kind, t in times.all_to_alls[where].items()}
                for where in PLACES
            },
        },
        "pipeline_messages_waited": times.messages,
        "computing": times.computing,
        "elsewhere": times.elsewhere,
    }


def _times(times: Times) -> dict[str, float | None]:
    return asdict(times) | {"hidden": times.hidden, "hidden_transfer": times.hidden_transfer}


def _steps_table(measured: dict[Mode, Measured]) -> Table:
    table = Table(title="steps")
    table.add_column("overlap")
    columns = ["step s (median)", "min to max", "tokens/s", "computing s"]
    columns += [f"{kind} waits s" for kind in MESSAGES]
    for column in (*columns, "elsewhere s", "load max/mean"):
        table.add_column(column, justify="right")
    for mode, result in measured.items():
        times = result.times
        inner = ["-"] * 4
        if times is not None:
            parts = (times.computing, *(times.messages[kind] for kind in MESSAGES), times.elsewhere)
            inner = [f"{part:.3f}" for part in parts]
        spread = f"{min(result.step_seconds):.3f} to {max(result.step_seconds):.3f}"
        head = [mode, f"{result.median_seconds:.3f}", spread, f"{result.tokens_per_second:,.0f}"]
        table.add_row(*head, *inner, f"{result.load_max:.2f}")
    spreads = [statistics.pstdev(m.step_seconds) / m.median_seconds for m in measured.values()]
    table.caption = (
        "a step takes as long as on its slowest rank; the other times are means over ranks and "
        f"steps; the steps of a mode differ by {100 * max(spreads):.0f} % (standard deviation)"
    )
    return table


def _exchange_table(mode: Mode, times: StepTimes) -> Table:
    table = Table(title=f"all-to-alls, overlap {mode}, seconds per step and rank")
    table.add_column("where")
    table.add_column("kind")
    columns = ("number", "in flight", "transfer", "waited", "waited for transfer")
    for column in (*columns, "hidden", "hidden transfer"):
        table.add_column(column, justify="right")
    for where in PLACES:
        kinds = [(kind, times.all_to_alls[where][kind]) for kind in ALL_TO_ALLS]
        for kind, t in [*kinds, ("together", times.total(where))]:
            if t.number:
                parts = (t.in_flight, t.transfer, t.waited, t.waited_transfer)
                shares = (_percent(t.hidden), _percent(t.hidden_transfer))
                table.add_row(where, kind, f"{t.number:g}", *(f"{p:.3f}" for p in parts), *shares)
        table.add_section()
    table.caption = (
        "hidden = 1 - waited / in flight, which contains waiting for late peers; hidden transfer "
        "= 1 - waited for transfer / transfer, both from when the last rank has started"
    )
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"

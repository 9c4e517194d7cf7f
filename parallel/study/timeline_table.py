"""Timelines side by side: as a readable table, as plain values, and what is on a critical path."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from parallel.schedule.table import Overlap, Schedule
from parallel.study.timeline import Idle, Span, Timeline

COLUMNS = (
    "makespan", "idle %", "warm-up", "transfer", "depend-\nency", "cool-\ndown",
    "peak acti-\nvations", "parameters\nheld",
)  # fmt: skip
CAPTION = (
    "warm-up to cool-down: idle time by its cause, in % like idle; activations in full stages, on "
    "the rank that holds most; 1 x is one P-th of the model"
)


def summary(timeline: Timeline) -> dict[str, object]:
    """What `--json` prints of a timeline: times in the unit of the costs, peaks in full stages."""
    return {
        "makespan": timeline.makespan,
        "idle_fraction": timeline.idle_fraction,
        "idle_by_rank": list(timeline.idle),
        "peak_in_flight": list(timeline.peak_in_flight),
    }


def table(timelines: Mapping[str, Timeline]) -> Table:
    """Timelines by name, one per row."""
    table = Table(box=SIMPLE_HEAD, caption=CAPTION, padding=(0, 1, 0, 0))
    table.add_column("schedule", vertical="bottom", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", vertical="bottom", no_wrap=True)
    for name, timeline in timelines.items():
        table.add_row(
            Text(name),
            f"{timeline.makespan:.6g}",
            f"{100 * timeline.idle_fraction:.1f}",
            *(f"{100 * share:.1f}" for share in _shares(timeline)),
            f"{max(timeline.peak_in_flight):g}",
            f"{_parameters_held(timeline.schedule):g} x",
        )
    return table


def _shares(timeline: Timeline) -> tuple[float, float, float, float]:
    """Idle time by cause, in the order of the columns, over the time of all ranks."""
    everything = timeline.makespan * timeline.schedule.ranks or 1.0
    causes = Idle(*(sum(times) / everything for times in zip(*timeline.idle_by_cause)))
    return causes.warm_up, causes.transfer, causes.dependency, causes.cool_down


def _parameters_held(schedule: Schedule) -> float:
    """Full stages' worth of parameters on the rank that holds most."""
    most = max(len(schedule.stages_of(rank)) for rank in range(schedule.ranks))
    return most * schedule.stage_share


def critical_path_line(timeline: Timeline) -> str:
    """What the makespan consists of: the time on the critical path of every kind of item."""
    times: dict[str, float] = defaultdict(float)
    path = timeline.critical_path
    for step in path:
        what = "transfers"
        if isinstance(step, Span):
            what = "pairs" if isinstance(step.item, Overlap) else step.item.kind
        times[what] += step.end - step.start
    end = path[-1].end if path else 0.0
    # A measured item does not start the moment it could.
    times["waiting"] = end - sum(times.values())
    times["optimizer"] = timeline.makespan - end
    least = 1e-6 * timeline.makespan
    parts = [f"{what} {time:.6g}" for what, time in times.items() if time > least]
    spans = [step for step in path if isinstance(step, Span)]
    ranks = len({span.rank for span in spans})
    return (
        f"critical path of {timeline.schedule.name}: {timeline.makespan:.6g} = "
        f"{' + '.join(parts)}; {len(spans)} items on {ranks} rank{'s' * (ranks > 1)}"
    )

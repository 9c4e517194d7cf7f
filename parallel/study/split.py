"""The split of layers over stages: how many layers each stage should have.

The step of a pipeline is that of its busiest rank, so a stage with the head, or with a prediction
module, should have fewer layers; but where they are missing, the table idles. So the split is
judged by the simulated step, not by the work alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from parallel.schedule.lower import lower
from parallel.schedule.table import Schedule, ScheduleError
from parallel.study.costs import CostModel
from parallel.study.simulate import simulate
from parallel.study.timeline import Timeline

Counts: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """Layers by stage, and the step simulated with them, in the unit of the costs."""

    counts: Counts
    makespan: float


def split_layers(
    table: Schedule, layers: int, costs: Callable[[Counts], CostModel], least: int = 1
) -> Split:
    """The split with which `table` is quickest, as far as moving one layer at a time finds it.

    costs: the cost model for given layers by stage; it knows what each layer costs, and what the
    first and the last stage have besides. least: layers that a stage has at least.
    Starts with an even split; then, as long as the step gets shorter, a stage of a rank that works
    most gives one layer to another stage, those of the ranks that work least first.
    Raises ScheduleError if there are too few layers.
    """
    stages = table.stages
    if layers < least * stages:
        raise ScheduleError(f"{layers} layers are too few for {stages} stages of {least} or more")
    lowered = lower(table)
    counts = tuple(layers // stages + (stage < layers % stages) for stage in range(stages))
    timeline = simulate(lowered, costs(counts))
    better = True
    while better:
        better = False
        for moved in _moves(counts, timeline, least):
            tried = simulate(lowered, costs(moved))
            if tried.makespan < timeline.makespan * (1 - 1e-12):
                counts, timeline, better = moved, tried, True
                break
    return Split(counts, timeline.makespan)


def _moves(counts: Counts, timeline: Timeline, least: int) -> Iterator[Counts]:
    """One layer from a stage of the busiest ranks to another stage, the idlest ranks' first."""
    idle, table = timeline.idle, timeline.schedule
    spare = [max(idle[r] for (_, s), r in table.placement.items() if s == stage)
             for stage in range(table.stages)]  # fmt: skip
    busiest = min(spare)
    for taker in sorted(range(table.stages), key=lambda stage: -spare[stage]):
        for giver in range(table.stages):
            busy = spare[giver] <= busiest + 1e-9 * timeline.makespan
            if busy and giver != taker and counts[giver] > least:
                moved = list(counts)
                moved[giver] -= 1
                moved[taker] += 1
                yield tuple(moved)

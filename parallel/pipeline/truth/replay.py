"""How long a schedule would take if ...: two variations on a timeline, to find where time went."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from parallel.schedule.follow import Walk
from parallel.schedule.lower import Message, inputs, outputs
from parallel.schedule.table import Action, Item, Overlap, Schedule
from parallel.study.timeline import Timeline


def replay(timeline: Timeline) -> float:
    """The makespan if each item took as long as it did and no time were lost between items.

    An item then starts when its rank is free and its inputs have been computed. The measured
    makespan exceeds this by the time lost in messages, and this exceeds the simulated makespan by
    the time that items took beyond their cost. The timeline is of a whole step.
    """
    schedule = timeline.schedule
    walk: Walk[Message] = Walk()
    made: dict[Message, float] = {}
    clocks = [0.0] * schedule.ranks

    def run(rank: int) -> Iterator[Message]:
        for span in timeline.by_rank[rank]:
            for message in inputs(schedule, span.item):
                if message not in made:
                    yield message
                clocks[rank] = max(clocks[rank], made[message])
            clocks[rank] += span.end - span.start
            for message in outputs(schedule, span.item):
                made[message] = clocks[rank]
                walk.happen(message)

    walk.follow(map(run, range(schedule.ranks)))
    return max(clocks)


def gradients_first(schedule: Schedule) -> Schedule:
    """`schedule` as the executor runs it on stages without collectives, where a pair costs as much
    as its parts: B as I and W, so that the input gradient leaves first, and a pair as I, W and F.
    """
    programs = tuple(
        tuple(part for item in program for part in _parts(item)) for program in schedule.programs
    )
    return replace(schedule, programs=programs)


def _parts(item: Item) -> tuple[Action, ...]:
    if isinstance(item, Overlap):
        return *_parts(item.backward), item.forward
    if item.kind == "B":
        return replace(item, kind="I"), replace(item, kind="W")
    return (item,)

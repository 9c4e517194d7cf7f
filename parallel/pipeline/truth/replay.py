"""What a schedule would take if ...: two variations on a timeline, to find where time went."""

from __future__ import annotations

from dataclasses import replace

from parallel.schedule.lower import Message, inputs, outputs
from parallel.schedule.table import Action, Item, Overlap, Schedule
from parallel.study.timeline import Timeline


def replay(timeline: Timeline) -> float:
    """The makespan if each item took as long as it did, and nothing were lost between items.

    An item then begins when its rank is free and its inputs have been computed. What the measured
    makespan has beyond this went into messages, and what this has beyond the simulated one into
    items that took longer than they cost. The timeline is of a whole step.
    """
    schedule = timeline.schedule
    made: dict[Message, float] = {}
    clocks, positions = [0.0] * schedule.ranks, [0] * schedule.ranks
    moved = True
    while moved:
        moved = False
        for rank, spans in enumerate(timeline.by_rank):
            for span in spans[positions[rank] :]:
                waits = inputs(schedule, span.item)
                if not all(message in made for message in waits):
                    break
                begin = max([clocks[rank], *(made[message] for message in waits)])
                clocks[rank] = begin + span.end - span.begin
                made |= dict.fromkeys(outputs(schedule, span.item), clocks[rank])
                positions[rank] += 1
                moved = True
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

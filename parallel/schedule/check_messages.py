"""The check of a lowered table: its messages match, and it cannot deadlock.

Every channel is first in first out, sends and receives are matched one to one and in order, and
there is no deadlock even where a send blocks until its receive is posted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TypeAlias

from parallel.schedule.follow import Walk
from parallel.schedule.lower import Channel, Lowered, Message, inputs, outputs
from parallel.schedule.table import Item, ScheduleError, at

# ("posted", message) by its receiver, ("arrived", message) there.
Event: TypeAlias = tuple[str, Message]


def check_lowered(lowered: Lowered) -> None:
    """Check the communication of a lowered table whose schedule `check` has accepted."""
    for rank, program in enumerate(lowered.programs):
        for position, step in enumerate(program):
            expected = outputs(lowered.schedule, step.item)
            if step.sends != expected:
                raise ScheduleError(
                    f"{at(rank, position, step.item)} sends {_text(step.sends)}, "
                    f"but makes {_text(expected)}"
                )
    _check_channels(lowered)
    _check_rendezvous(lowered)


def _text(messages: tuple[Message, ...]) -> str:
    return ", then ".join(map(str, messages)) or "nothing"


def _check_channels(lowered: Lowered) -> None:
    """Check that on every channel the receives match the sends, one to one and in the same
    order."""
    sends: dict[Channel, list[tuple[int, Item, Message]]] = defaultdict(list)
    receives: dict[Channel, list[tuple[int, Item, Message]]] = defaultdict(list)
    for rank, program in enumerate(lowered.programs):
        for position, step in enumerate(program):
            for message in step.sends:
                sends[rank, message.destination].append((position, step.item, message))
            for message in step.receives:
                receives[message.source, rank].append((position, step.item, message))
    for channel in sorted(sends.keys() | receives.keys()):
        source, destination = channel
        for out, into in zip(sends[channel], receives[channel]):
            if out[2] != into[2]:
                raise ScheduleError(
                    f"{at(destination, into[0], into[1])} receives the {into[2]} where rank "
                    f"{source}, position {out[0]} sends the {out[2]}"
                )
        matched = min(len(sends[channel]), len(receives[channel]))
        for position, item, message in sends[channel][matched:]:
            raise ScheduleError(
                f"{at(source, position, item)} sends the {message}, which is never received"
            )
        for position, item, message in receives[channel][matched:]:
            raise ScheduleError(
                f"{at(destination, position, item)} receives the {message}, which is never sent"
            )


def _check_rendezvous(lowered: Lowered) -> None:
    """Check that there is no deadlock even where a send blocks until its receive is posted."""
    walk: Walk[Event] = Walk()
    happened: set[Event] = set()
    positions = [0] * len(lowered.programs)

    def happen(event: Event) -> None:
        happened.add(event)
        walk.happen(event)

    def run(rank: int) -> Iterator[Event]:
        for step in lowered.programs[rank]:
            for message in step.receives:
                happen(("posted", message))
            for message in inputs(lowered.schedule, step.item):
                if ("arrived", message) not in happened:
                    yield "arrived", message
            for message in step.sends:
                if ("posted", message) not in happened:
                    yield "posted", message
                happen(("arrived", message))
            positions[rank] += 1

    stuck = walk.follow(map(run, range(len(lowered.programs))))
    if not stuck:
        return
    # The root first: a blocked sender, before those who wait for what it would send later.
    rank = min(stuck, key=lambda rank: (stuck[rank][0] != "posted", rank))
    kind, message = stuck[rank]
    here = at(rank, positions[rank], lowered.programs[rank][positions[rank]].item)
    if kind == "posted":
        raise ScheduleError(f"{here} is blocked sending the {message}, whose receive is not posted")
    raise ScheduleError(f"{here} waits forever for the {message}")

"""The check of a lowered table: its messages match, and it cannot deadlock.

Every channel is first in first out, sends and receives are matched one to one and in order, and
there is no deadlock, even where a send blocks until its receive is posted, and where a rank waits
before each item for all receives that it has posted, as a GPU may (lower.py says why).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple, TypeAlias

from parallel.schedule.follow import Walk
from parallel.schedule.lower import Channel, Lowered, Message, inputs, outputs
from parallel.schedule.table import Item, ScheduleError, at

# ("posted", message) by its receiver, ("arrived", message) there.
Event: TypeAlias = tuple[str, Message]


class Stuck(NamedTuple):
    """Where a rank is stuck: the position in its program, and the event that it waits for."""

    position: int
    event: str
    message: Message


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
    _check_deadlock(lowered)


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


def _check_deadlock(lowered: Lowered) -> None:
    synchronised = _stuck(lowered, synchronised=True)
    if not synchronised:
        return
    stuck = _stuck(lowered, synchronised=False)
    if not stuck:
        raise ScheduleError(_posted_too_early(lowered, synchronised))
    # The root first: a blocked sender, before those who wait for what it would send later.
    rank = min(stuck, key=lambda rank: (stuck[rank].event != "posted", rank))
    position, event, message = stuck[rank]
    here = at(rank, position, lowered.programs[rank][position].item)
    if event == "posted":
        raise ScheduleError(f"{here} is blocked sending the {message}, whose receive is not posted")
    raise ScheduleError(f"{here} waits forever for the {message}")


def _posted_too_early(lowered: Lowered, stuck: dict[int, Stuck]) -> str:
    """What is wrong with a table of which only the synchronised walk gets stuck."""
    # From any rank that is stuck to the one that it waits for, and so on, into the circle.
    way: list[int] = []
    rank = min(stuck)
    while rank not in way:
        way.append(rank)
        _, event, message = stuck[rank]
        rank = message.destination if event == "posted" else message.source
    # Some rank there waits for a receive that its item does not need: else nobody would be stuck.
    rank = min(
        rank
        for rank in way[way.index(rank) :]
        if stuck[rank].message in lowered.programs[rank][stuck[rank].position].receives
        and stuck[rank].message not in lowered.programs[rank][stuck[rank].position].waits
    )
    position, _, message = stuck[rank]
    return (
        f"{at(rank, position, lowered.programs[rank][position].item)} comes after the receive of "
        f"the {message} is posted, but has to run before that is sent: post the receive after it"
    )


def _stuck(lowered: Lowered, synchronised: bool) -> dict[int, Stuck]:
    """The ranks that would be stuck if a send blocked until its receive is posted.

    synchronised: a rank waits before each item for all receives that it has posted.
    """
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
            awaited = inputs(lowered.schedule, step.item)
            for message in chain(step.receives, awaited) if synchronised else awaited:
                if ("arrived", message) not in happened:
                    yield "arrived", message
            for message in step.sends:
                if ("posted", message) not in happened:
                    yield "posted", message
                happen(("arrived", message))
            positions[rank] += 1

    stuck = walk.follow(map(run, range(len(lowered.programs))))
    return {rank: Stuck(positions[rank], *event) for rank, event in stuck.items()}

"""The lowering: adds to a schedule table the messages between ranks, and when each is posted.

What an executor does with a step: it posts `receives` (asynchronously), runs `item`, whose actions
each wait for their own input message only, then issues `sends` (asynchronously, though the proof
below allows it to wait).

A channel is a pair (source, destination), first in first out over all its messages.

No deadlock. Number all items so that each comes after those it needs and those before it on its
rank; such an order exists if the programs can be followed at all. Every receive is posted just
before the first item of its rank that comes after the one that sends; so on a channel they are
posted in the order of the sends, and none after its use. Then the pipeline does not stop, even if
every send blocks until its receive is posted, and every rank waits before each item until all that
it has posted is there: a GPU may do so, since NCCL's receives are kernels, and CUDA waits for all
kernels when it loads one or frees memory. Of all ranks that are stuck, take the one whose item x
comes first. If x waits for an input or for a posted receive, the rank that makes it is stuck at an
item before x. If x has run and its send blocks, the receiver is stuck before it posts, so at an
item before x. Both contradict the choice of x.

Neighbouring stages on one rank hand over locally, with no message.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, repeat
from math import inf
from typing import Literal, NamedTuple, TypeAlias, get_args

from parallel.schedule.cycle_collector import collector_paused
from parallel.schedule.follow import Walk
from parallel.schedule.table import Action, Item, Kind, Overlap, Schedule, ScheduleError, actions

Channel: TypeAlias = tuple[int, int]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Message(NamedTuple):
    """What one rank sends another: an activation down the flow, or a gradient back up.

    stage: the one that consumes it.
    """

    kind: Literal["activation", "gradient"]
    flow: int
    stage: int
    micro_batch: int
    source: int
    destination: int

    def __str__(self) -> str:
        return (
            f"{self.kind}(flow {self.flow}, stage {self.stage}, micro-batch {self.micro_batch}, "
            f"rank {self.source} -> rank {self.destination})"
        )


Messages: TypeAlias = tuple[Message, ...]


class Step(NamedTuple):
    """One item of a program, the receives to post before it and the sends to issue after it.

    waits: what its actions wait for, `inputs(schedule, item)`.
    """

    receives: Messages
    item: Item
    sends: Messages
    waits: Messages


@dataclass(frozen=True)
class Lowered:
    """A schedule with its communication: one program of steps per rank."""

    schedule: Schedule
    programs: tuple[tuple[Step, ...], ...]


def received(schedule: Schedule, action: Action) -> Message | None:
    """The message that `action` waits for; None where its input is local or it has none."""
    kind, flow, stage, micro_batch = action.kind, action.flow, action.stage, action.micro_batch
    if kind == "W":
        return None
    source = schedule.placement.get((flow, stage - 1 if kind == "F" else stage + 1))
    rank = schedule.placement[flow, stage]
    if source is None or source == rank:
        return None
    name: Literal["activation", "gradient"] = "activation" if kind == "F" else "gradient"
    return Message(name, flow, stage, micro_batch, source, rank)


def sent(schedule: Schedule, action: Action) -> Message | None:
    """The message that `action` makes; None where its output stays on the rank or it has none."""
    kind, flow, micro_batch = action.kind, action.flow, action.micro_batch
    if kind == "W":
        return None
    stage = action.stage + 1 if kind == "F" else action.stage - 1
    destination = schedule.placement.get((flow, stage))
    rank = schedule.placement[flow, action.stage]
    if destination is None or destination == rank:
        return None
    name: Literal["activation", "gradient"] = "activation" if kind == "F" else "gradient"
    return Message(name, flow, stage, micro_batch, rank, destination)


def inputs(schedule: Schedule, item: Item) -> tuple[Message, ...]:
    """The messages that the actions of `item` wait for."""
    messages = (received(schedule, action) for action in actions(item))
    return tuple(message for message in messages if message)


def outputs(schedule: Schedule, item: Item) -> tuple[Message, ...]:
    """The messages that `item` makes, in the order they are sent."""
    # A pair's gradient first: backwards are what the drain of the pipeline waits for.
    messages = (sent(schedule, action) for action in reversed(actions(item)))
    return tuple(message for message in messages if message)


def channels(lowered: Lowered) -> set[Channel]:
    """The channels that messages go through."""
    steps = chain.from_iterable(lowered.programs)
    return {(message.source, message.destination) for step in steps for message in step.sends}


@collector_paused()
def lower(schedule: Schedule) -> Lowered:
    """Add sends and receives to `schedule`.

    If the programs can be followed at all, the result has no deadlock (see above).
    Raises ScheduleError where a message is sent that no item uses, or used that none sends.
    """
    mail = _Mail(schedule)
    sends = [[mail.outputs(item) for item in program] for program in schedule.programs]
    waits = [[mail.inputs(item) for item in program] for program in schedule.programs]
    receives = _receives(sends, waits, _ends(schedule, sends, waits))
    programs = tuple(
        tuple(Step(tuple(posted.get(i, ())), *step) for i, step in enumerate(zip(*columns)))
        for posted, *columns in zip(receives, schedule.programs, sends, waits)
    )
    return Lowered(schedule, programs)


def _receives(
    sends: list[list[Messages]], waits: list[list[Messages]], ends: list[list[int]]
) -> list[dict[int, list[Message]]]:
    """By rank and position, the receives to post before that item; by source, in its send order."""
    unsent = {
        message: position
        for program in waits
        for position, messages in enumerate(program)
        for message in messages
    }
    receives: list[dict[int, list[Message]]] = [{} for _ in ends]
    for source, program in enumerate(sends):
        for messages, end in zip(program, chain(ends[source], repeat(inf))):
            for message in messages:
                rank = message.destination
                if unsent.pop(message, None) is None:
                    raise ScheduleError(f"rank {rank} never uses the {message}")
                # Of two items that end together, the one on the lower rank comes first.
                search = bisect_left if source < rank else bisect_right
                receives[rank].setdefault(search(ends[rank], end), []).append(message)
    for message, position in unsent.items():
        raise ScheduleError(
            f"rank {message.destination}, position {position} waits for the {message}, which "
            "is never sent"
        )
    return receives


class _Mail:
    """`inputs` and `outputs` of a schedule's items, quickly: one search for each kind and stage."""

    def __init__(self, schedule: Schedule) -> None:
        firsts = [
            Action(kind, flow, stage, 0) for flow, stage in schedule.placement for kind in KINDS
        ]
        self._received = {(a.kind, a.flow, a.stage): received(schedule, a) for a in firsts}
        self._sent = {(a.kind, a.flow, a.stage): sent(schedule, a) for a in firsts}

    def inputs(self, item: Item) -> Messages:
        if isinstance(item, Overlap):
            return self._of(self._received, item.forward) + self._of(self._received, item.backward)
        return self._of(self._received, item)

    def outputs(self, item: Item) -> Messages:
        if isinstance(item, Overlap):
            return self._of(self._sent, item.backward) + self._of(self._sent, item.forward)
        return self._of(self._sent, item)

    @staticmethod
    def _of(messages: Mapping[tuple[Kind, int, int], Message | None], action: Action) -> Messages:
        first = messages[action.kind, action.flow, action.stage]
        if first is None:
            return ()
        kind, flow, stage, _, source, destination = first
        return (Message(kind, flow, stage, action.micro_batch, source, destination),)


def _ends(
    schedule: Schedule, sends: list[list[Messages]], waits: list[list[Messages]]
) -> list[list[int]]:
    """When each item would end, by rank, if F, I and W took four units and a transfer one.

    This time, and then the rank, puts items in an order that can be followed, whatever the units:
    these decide only how early receives are posted. Without the one of the transfer, ranks would
    keep step, and a receive would wait for the end of the item that a late rank is running. A rank
    that would wait forever has no more ends than items before.
    """
    walk: Walk[Message] = Walk()
    ends: list[list[int]] = [[] for _ in schedule.programs]
    sent_at: dict[Message, int] = {}

    def run(rank: int) -> Iterator[Message]:
        clock, done = 0, ends[rank]
        for item, waits_for, makes in zip(schedule.programs[rank], waits[rank], sends[rank]):
            for message in waits_for:
                if message not in sent_at:
                    yield message
                clock = max(clock, sent_at[message] + 1)
            clock += 12 if isinstance(item, Overlap) else 8 if item.kind == "B" else 4
            done.append(clock)
            for message in makes:
                sent_at[message] = clock
                walk.happen(message)

    walk.follow(map(run, range(schedule.ranks)))
    return ends

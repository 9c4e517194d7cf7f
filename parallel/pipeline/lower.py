"""The lowering: adds to a schedule table the messages between ranks, and when each is posted.

What an executor does with a step: it posts `receives` (asynchronously), runs `item`, whose actions
each wait for their own input message only, then issues `sends` (asynchronously; it never waits).

A channel is a pair (source, destination), first in first out over all its messages. So receives
are posted in the order in which the source sends, `ahead` items before use, or earlier where a
message behind them on the channel is used first. Neighbouring stages on one rank hand over
locally, with no message.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from parallel.pipeline.schedule import Action, Item, Overlap, Program, Schedule, ScheduleError

Channel: TypeAlias = tuple[int, int]


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


@dataclass(frozen=True, slots=True)
class Step:
    """One item of a program, the receives to post before it and the sends to issue after it."""

    receives: tuple[Message, ...]
    item: Item
    sends: tuple[Message, ...]


@dataclass(frozen=True)
class Lowered:
    """A schedule with its communication: one program of steps a rank."""

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
    if isinstance(item, Overlap):
        both = received(schedule, item.forward), received(schedule, item.backward)
        return tuple(message for message in both if message)
    message = received(schedule, item)
    return (message,) if message else ()


def outputs(schedule: Schedule, item: Item) -> tuple[Message, ...]:
    """The messages that `item` makes, in the order they are sent."""
    if isinstance(item, Overlap):
        # The gradient first: backwards are what the drain of the pipeline waits for.
        both = sent(schedule, item.backward), sent(schedule, item.forward)
        return tuple(message for message in both if message)
    message = sent(schedule, item)
    return (message,) if message else ()


def lower(schedule: Schedule, ahead: int = 2) -> Lowered:
    """Add sends and receives to `schedule`, each receive posted at least `ahead` items before use.

    Two items ahead are enough, and for DualPipe the least, that no schedule here could deadlock
    even if every send blocked until its receive is posted.
    Raises ScheduleError where a message is sent that no item uses, or used that none sends.
    """
    sends = [[outputs(schedule, item) for item in program] for program in schedule.programs]
    uses = [_uses(schedule, program) for program in schedule.programs]
    channels: dict[Channel, list[Message]] = defaultdict(list)
    for program_sends in sends:
        for messages in program_sends:
            for message in messages:
                channels[message.source, message.destination].append(message)

    receives: list[list[list[Message]]] = [[[] for _ in p] for p in schedule.programs]
    for (_, destination), in_order in sorted(channels.items()):
        positions = _posting_positions(in_order, uses[destination], ahead)
        for message, position in zip(in_order, positions):
            receives[destination][position].append(message)
    for unsent in uses:
        for message, position in unsent.items():
            raise ScheduleError(
                f"rank {message.destination}, position {position} waits for the {message}, which "
                "is never sent"
            )

    programs = tuple(
        tuple(Step(tuple(r), item, s) for r, item, s in zip(*columns))
        for columns in zip(receives, schedule.programs, sends)
    )
    return Lowered(schedule, programs)


def _uses(schedule: Schedule, program: Program) -> dict[Message, int]:
    """Every message that a program waits for, with the position of the item that does."""
    return {
        message: position
        for position, item in enumerate(program)
        for message in inputs(schedule, item)
    }


def _posting_positions(messages: list[Message], uses: dict[Message, int], ahead: int) -> list[int]:
    """Where to post one channel's receives, in its send order. Takes what it finds from `uses`."""
    positions = []
    for message in messages:
        if message not in uses:
            raise ScheduleError(f"rank {message.destination} never uses the {message}")
        positions.append(max(0, uses.pop(message) - ahead))
    # First in, first out: nothing may be posted after what is sent behind it.
    for i in range(len(positions) - 2, -1, -1):
        positions[i] = min(positions[i], positions[i + 1])
    return positions

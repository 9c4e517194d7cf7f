"""What is in flight on one rank, item by item of its program: tapes from F to the end of B or W,
messages from their post to their use, and those that have been sent until they are received."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from parallel.schedule.lower import Message, Step
from parallel.schedule.table import Action, Item, Overlap, Schedule, actions
from trainer.config.derived import mesh_of
from trainer.config.schema import Config
from trainer.plan.pass_memory import Leg, StageMemory
from trainer.plan.traffic import message_bytes


@dataclass(frozen=True)
class Moment:
    """Bytes when an item needs most. activations: on tapes, when it starts. buffers: of messages,
    and of an all-to-all in flight. transient: what it needs beyond. at: the item."""

    activations: int
    buffers: int
    transient: int
    at: str

    @property
    def bytes(self) -> int:
        return self.activations + self.buffers + self.transient


def moments(
    config: Config, schedule: Schedule, stages: Sequence[StageMemory], program: Sequence[Step]
) -> Iterator[Moment]:
    """One for each item of a rank's lowered program. stages: by number."""
    rank = _Rank(config, schedule, stages)
    for step in program:
        rank.posted.update(step.receives)
        yield rank.runs(step)


@dataclass
class _Rank:
    """tapes: bytes. posted: receives that are not used yet. handed_over: outputs that wait for
    another stage of this rank. unreceived: sends that are still kept, by destination."""

    config: Config
    schedule: Schedule
    stages: Sequence[StageMemory]
    tapes: int = 0
    posted: set[Message] = field(default_factory=set)
    handed_over: int = 0
    unreceived: dict[int, int] = field(default_factory=dict)

    def runs(self, step: Step) -> Moment:
        item, message = step.item, round(message_bytes(self.config, mesh_of(self.config)))
        self.posted.difference_update(step.waits)
        self.handed_over -= sum(self.is_taken_here(action) for action in actions(item))
        messages = len(self.posted) + self.handed_over + sum(self.unreceived.values())
        peak, exchanging, change = self.needs(item, message)
        moment = Moment(self.tapes, messages * message + exchanging, peak - exchanging, str(item))
        self.tapes += change
        self.handed_over += sum(self.is_given_here(action) for action in actions(item))
        self.sends(step.sends)
        return moment

    def needs(self, item: Item, message: int) -> tuple[int, int, int]:
        """The most bytes of an item, those of all-to-alls in flight then, and what it leaves."""
        if not isinstance(item, Overlap):
            legs = self.stages[item.stage].passes[item.kind]
            top = max(legs, key=lambda leg: leg.peak)
            return top.peak, top.exchanging, legs[-1].end
        forward = self.stages[item.forward.stage].passes["F"]
        backward = self.stages[item.backward.stage].passes["B"]
        gradient = message * (item.backward.stage < self.schedule.stages - 1)
        activation = message * (item.forward.stage > 0)
        peak, exchanging = peak_of_pair(
            (backward, forward), (gradient, activation), self.config.pipeline.overlap
        )
        return peak, exchanging, forward[-1].end + backward[-1].end

    def sends(self, messages: Sequence[Message]) -> None:
        """NCCL says when a message has been received, here: while the next item runs. gloo does
        not, and Transport keeps the last few of each channel."""
        keeps = 2 * self.schedule.ranks + 2 if self.config.run.device == "cpu" else 0
        before = {to: min(count, keeps) for to, count in self.unreceived.items()}
        for to in (message.destination for message in messages):
            count = before.get(to, 0) + 1
            before[to] = min(count, keeps) if keeps else count
        self.unreceived = before

    def is_taken_here(self, action: Action) -> bool:
        """Whether its input is the output of a stage of this rank."""
        return self._is_here(action, -1 if action.kind == "F" else 1)

    def is_given_here(self, action: Action) -> bool:
        return self._is_here(action, 1 if action.kind == "F" else -1)

    def _is_here(self, action: Action, further: int) -> bool:
        places, flow = self.schedule.placement, action.flow
        other = places.get((flow, action.stage + further))
        return action.kind != "W" and other == places[flow, action.stage]


def peak_of_pair(
    passes: tuple[Sequence[Leg], Sequence[Leg]], received: tuple[int, int], overlap: bool
) -> tuple[int, int]:
    """The most bytes of two passes that take turns as the engine's `interleave` does, the first of
    them first, and those of all-to-alls in flight then. received: bytes that each has before it
    starts. overlap: if not, the second starts when the first has ended."""
    left = [list(legs) for legs in passes]
    level, flying = list(received), [0, 0]
    most, turn = (0, 0), 0
    while left[0] or left[1]:
        if left[turn]:
            leg, other = left[turn].pop(0), 1 - turn
            most = max(most, (leg.peak + level[other], leg.exchanging + flying[other]))
            level[turn], flying[turn] = leg.end, leg.flying
        if overlap or not left[turn]:
            turn = 1 - turn
    return most

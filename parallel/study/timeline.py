"""A timeline: one training step as it ran, simulated or measured, and what it tells."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from parallel.schedule.check import peak_in_flight
from parallel.schedule.lower import Channel, Message, inputs, outputs
from parallel.schedule.table import Item, Schedule, actions
from parallel.study.costs import CostModel, Costs


class Span(NamedTuple):
    """An item as it ran: on which rank, from when to when."""

    rank: int
    item: Item
    start: float
    end: float


class Transfer(NamedTuple):
    """A message as it was transferred: from when its channel took it up until it had arrived."""

    message: Message
    start: float
    end: float


class Idle(NamedTuple):
    """One rank's idle time by its cause.

    warm_up: before its first item. cool_down: after its last item, or its optimizer. transfer:
    all it waits for has been computed and is on its way. dependency: some of it has not.
    """

    warm_up: float
    dependency: float
    transfer: float
    cool_down: float


Place: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Timeline:
    """A run of one training step.

    spans: rank after rank, each in program order.
    optimizer: by rank, from when to when; empty where there is none. transfers: on every channel in
    its order; empty where they are not known. costs: of the memory.
    """

    schedule: Schedule
    spans: tuple[Span, ...]
    optimizer: tuple[tuple[float, float], ...] = ()
    transfers: tuple[Transfer, ...] = ()
    costs: CostModel = field(default_factory=CostModel)

    @cached_property
    def makespan(self) -> float:
        """The end of the last rank, its optimizer included."""
        ends = [span.end for span in self.spans] + [end for _, end in self.optimizer]
        return max(ends, default=0.0)

    @cached_property
    def idle(self) -> tuple[float, ...]:
        """Time by rank in which it computes nothing, out of the makespan."""
        idle = [self.makespan] * self.schedule.ranks
        for span in self.spans:
            idle[span.rank] -= span.end - span.start
        for rank, (start, end) in enumerate(self.optimizer):
            idle[rank] -= end - start
        return tuple(idle)

    @cached_property
    def peak_in_flight(self) -> tuple[float, ...]:
        """Activations by rank, in full stages, each held from F to B or W."""
        return peak_in_flight(self.schedule)

    @property
    def idle_fraction(self) -> float:
        """Idle time of all ranks over all their time."""
        return sum(self.idle) / (self.makespan * len(self.idle)) if self.makespan else 0.0

    @cached_property
    def by_rank(self) -> tuple[tuple[Span, ...], ...]:
        """The spans of each rank."""
        ranks: list[list[Span]] = [[] for _ in range(self.schedule.ranks)]
        for span in self.spans:
            ranks[span.rank].append(span)
        return tuple(map(tuple, ranks))

    @cached_property
    def idle_by_cause(self) -> tuple[Idle, ...]:
        """Idle time by rank and by cause; together what `idle` says."""
        return tuple(self._idle_of(rank) for rank in range(self.schedule.ranks))

    def _idle_of(self, rank: int) -> Idle:
        spans = self.by_rank[rank]
        if not spans:
            return Idle(self.makespan, 0.0, 0.0, 0.0)
        dependency = transfer = 0.0
        for before, span in pairwise(spans):
            if span.start <= before.end:
                continue
            made = [self._makers[m].end for m in inputs(self.schedule, span.item)]
            computed = min(span.start, max([before.end, *made]))
            dependency += computed - before.end
            transfer += span.start - computed
        end = self.makespan - spans[-1].end
        if self.optimizer:
            start_optimizer, end_optimizer = self.optimizer[rank]
            end -= end_optimizer - start_optimizer
        return Idle(spans[0].start, dependency, transfer, end)

    @cached_property
    def _places(self) -> dict[Message, Place]:
        """(rank, position) of the item that makes each message."""
        return {
            message: (rank, position)
            for rank, spans in enumerate(self.by_rank)
            for position, span in enumerate(spans)
            for message in outputs(self.schedule, span.item)
        }

    @cached_property
    def _makers(self) -> dict[Message, Span]:
        """The span that makes each message."""
        return {m: self.by_rank[rank][position] for m, (rank, position) in self._places.items()}

    @cached_property
    def critical_path(self) -> tuple[Span | Transfer, ...]:
        """What the makespan, or the start of the optimizer, is made of: each starts when the one
        before ends. Transfers that take no time are left out."""
        ranks = [rank for rank, spans in enumerate(self.by_rank) if spans]
        if not ranks:
            return ()
        rank = max(ranks, key=self._finish)
        place: Place | None = (rank, len(self.by_rank[rank]) - 1)
        path: list[Span | Transfer] = []
        while place:
            rank, position = place
            span = self.by_rank[rank][position]
            path.append(span)
            place = (rank, position - 1) if position else None
            if place and self.by_rank[rank][position - 1].end >= span.start:
                continue
            waited = [self._arrival(m) for m in inputs(self.schedule, span.item)]
            if waited:
                place = self._trace(max(waited, key=lambda transfer: transfer.end), path)
        return tuple(reversed(path))

    def _finish(self, rank: int) -> float:
        if not self.optimizer:
            return self.by_rank[rank][-1].end
        start, end = self.optimizer[rank]
        return end if start == self.by_rank[rank][-1].end else self.by_rank[rank][-1].end

    def _arrival(self, message: Message) -> Transfer:
        """The transfer of `message`; of no length where it is not known."""
        known = self._channels[message.source, message.destination]
        if message in known:
            return known[message]
        end = self._makers[message].end
        return Transfer(message, end, end)

    @cached_property
    def _channels(self) -> dict[Channel, dict[Message, Transfer]]:
        channels: dict[Channel, dict[Message, Transfer]] = defaultdict(dict)
        for transfer in self.transfers:
            message = transfer.message
            channels[message.source, message.destination][message] = transfer
        return channels

    def _trace(self, transfer: Transfer, path: list[Span | Transfer]) -> Place | None:
        """Put a transfer, and those that kept its channel busy, on the path; returns what they
        started with: the item that made the message, or the one after which its receive was posted.
        """
        message = transfer.message
        queue = list(self._channels[message.source, message.destination].values())
        number = queue.index(transfer) if transfer in queue else 0
        end = transfer.end
        while True:
            if end > transfer.start:
                path.append(transfer._replace(end=end))
            end, message = transfer.start, transfer.message
            if self._makers[message].end >= end:
                return self._places[message]
            for position, span in enumerate(self.by_rank[message.destination]):
                if span.end == end:
                    return message.destination, position
            if not number:
                return None
            number -= 1
            transfer = queue[number]

    @cached_property
    def memory(self) -> tuple[tuple[tuple[float, float], ...], ...]:
        """Activation memory by rank: from each time on, what is held, in the unit of the costs."""
        costs = Costs(self.costs, self.schedule)
        return tuple(self._memory_of(spans, costs) for spans in self.by_rank)

    def _memory_of(self, spans: tuple[Span, ...], costs: Costs) -> tuple[tuple[float, float], ...]:
        steps: list[tuple[float, float]] = [(0.0, 0.0)]

        def change(time: float, amount: float) -> None:
            last, held = steps[-1]
            if time == last:
                steps.pop()
            steps.append((time, held + amount))

        training = self.schedule.training
        for span in spans:
            for action in actions(span.item):
                whole, pending = costs.activation[action.stage], costs.pending[action.stage]
                if action.kind == "F":
                    change(span.start, whole)
                released = {"F": 0.0 if training else whole, "B": whole, "I": whole - pending}
                if amount := released.get(action.kind, pending):
                    change(span.end, -amount)
        return tuple(steps)

    @property
    def peak_memory(self) -> tuple[float, ...]:
        """Most activation memory held at once, by rank, in the unit of the costs."""
        return tuple(max(held for _, held in steps) for steps in self.memory)

"""The simulation: discrete events over the lowered table, under a cost model.

A rank runs its items in order. An item begins when the rank is free and its input messages have
arrived; a pair begins when both of its inputs have. A transfer costs the sender nothing: it begins
when the message is sent and its receive is posted, whichever is later, and takes one `hop`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from parallel.pipeline.check import peak_in_flight
from parallel.pipeline.lower import Lowered, Message, inputs, lower
from parallel.pipeline.schedule import Action, Item, Overlap, Schedule, ScheduleError


@dataclass(frozen=True)
class CostModel:
    """Costs in any one unit of time, the same for all of them.

    forward, input_grad, weight_grad: F, I and W; a B costs I + W. A number is the cost of a full
    stage, one P-th of the model for P ranks, so a V's half-size stage costs half of it. A sequence
    has one cost for each stage of the schedule, of that stage as it is.
    pair_factor: the cost of an overlapped pair over the sum of its parts.
    hop: one message from one rank to the next, the same for every stage size: a V's message has
    as many activations as a full stage's.
    """

    forward: float | Sequence[float] = 1.0
    input_grad: float | Sequence[float] = 1.0
    weight_grad: float | Sequence[float] = 1.0
    pair_factor: float = 1.0
    hop: float = 0.0


class Span(NamedTuple):
    """An item as it ran: on which rank, from when to when."""

    rank: int
    item: Item
    begin: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """A run of one training step, simulated or measured.

    spans: by rank, in program order. makespan: the end of the last of them. idle: time by rank in
    which it computes nothing, out of the makespan. peak_in_flight: activations by rank, in full
    stages.
    """

    schedule: Schedule
    spans: tuple[Span, ...]
    makespan: float
    idle: tuple[float, ...]
    peak_in_flight: tuple[float, ...]

    @property
    def idle_fraction(self) -> float:
        """Idle time of all ranks over all their time."""
        return sum(self.idle) / (self.makespan * len(self.idle)) if self.makespan else 0.0


def simulate(lowered: Lowered | Schedule, costs: CostModel) -> Timeline:
    """Run a table, or its lowering by default, under `costs`.

    Raises ScheduleError for costs that do not fit the stages, and for a table that deadlocks.
    """
    if isinstance(lowered, Schedule):
        lowered = lower(lowered)
    schedule = lowered.schedule
    spans = _Run(lowered, costs).spans()
    makespan = max((span.end for program in spans for span in program), default=0.0)
    return Timeline(
        schedule=schedule,
        spans=tuple(span for program in spans for span in program),
        makespan=makespan,
        idle=tuple(makespan - sum(span.end - span.begin for span in program) for program in spans),
        peak_in_flight=peak_in_flight(schedule),
    )


class _Costs:
    """A cost model made out for one schedule: the duration of any item."""

    def __init__(self, costs: CostModel, schedule: Schedule) -> None:
        forward = _by_stage("forward", costs.forward, schedule)
        input_grad = _by_stage("input_grad", costs.input_grad, schedule)
        weight_grad = _by_stage("weight_grad", costs.weight_grad, schedule)
        backward = [i + w for i, w in zip(input_grad, weight_grad)]
        self._by_kind = {"F": forward, "B": backward, "I": input_grad, "W": weight_grad}
        self._pair_factor = costs.pair_factor

    def of(self, item: Item) -> float:
        if isinstance(item, Overlap):
            return self._pair_factor * (self._alone(item.forward) + self._alone(item.backward))
        return self._alone(item)

    def _alone(self, action: Action) -> float:
        return self._by_kind[action.kind][action.stage]


def _by_stage(name: str, cost: float | Sequence[float], schedule: Schedule) -> list[float]:
    if not isinstance(cost, Sequence):
        return [cost * schedule.stage_share] * schedule.stages
    if len(cost) != schedule.stages:
        raise ScheduleError(f"costs: {name} has {len(cost)} numbers for {schedule.stages} stages")
    return list(cost)


class _Run:
    """The events of one simulated run: each rank advances until it waits for a message."""

    def __init__(self, lowered: Lowered, costs: CostModel) -> None:
        self._lowered = lowered
        self._costs = _Costs(costs, lowered.schedule)
        self._hop = costs.hop
        ranks = len(lowered.programs)
        self._clock = [0.0] * ranks
        self._spans: list[list[Span]] = [[] for _ in range(ranks)]
        self._sent: dict[Message, float] = {}
        self._posted: dict[Message, float] = {}
        self._waiting: dict[Message, int] = {}
        self._awake = list(range(ranks))

    def spans(self) -> list[list[Span]]:
        """Every rank's spans, in program order."""
        while self._awake:
            self._advance(self._awake.pop())
        for message, rank in self._waiting.items():
            item = self._lowered.programs[rank][len(self._spans[rank])].item
            raise ScheduleError(
                f"rank {rank}, position {len(self._spans[rank])}: {item} waits for ever for the "
                f"{message}"
            )
        return self._spans

    def _advance(self, rank: int) -> None:
        """Run the steps of `rank` until its program ends or a message has not been sent."""
        program, done, clock = self._lowered.programs[rank], self._spans[rank], self._clock[rank]
        while len(done) < len(program):
            step = program[len(done)]
            for message in step.receives:
                self._posted.setdefault(message, clock)
            begin = clock
            for message in inputs(self._lowered.schedule, step.item):
                if message not in self._sent:
                    self._waiting[message] = rank
                    self._clock[rank] = clock
                    return
                arrival = max(self._sent[message], self._posted[message]) + self._hop
                begin = max(begin, arrival)
            clock = begin + self._costs.of(step.item)
            done.append(Span(rank, step.item, begin, clock))
            for message in step.sends:
                self._sent[message] = clock
                if message in self._waiting:
                    self._awake.append(self._waiting.pop(message))

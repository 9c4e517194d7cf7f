"""The simulation: discrete events over the lowered table, under a cost model.

A rank runs its items in order. An item starts when the rank is free and its input messages have
arrived; a pair starts when both of its inputs have. A transfer costs the sender nothing: it starts
when the message is sent, its receive is posted and its channel is free, whichever is last.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from parallel.schedule.cycle_collector import collector_paused
from parallel.schedule.follow import Walk
from parallel.schedule.lower import Channel, Lowered, Message, lower
from parallel.schedule.table import Schedule, ScheduleError, at
from parallel.study.costs import CostModel, Costs
from parallel.study.timeline import Span, Timeline, Transfer

__all__ = ["CostModel", "Span", "Timeline", "Transfer", "simulate"]


@collector_paused()
def simulate(lowered: Lowered | Schedule, costs: CostModel) -> Timeline:
    """Run a table, or its lowering by default, under `costs`.

    Raises ScheduleError for costs that do not fit the stages, and for a table that deadlocks.
    """
    if isinstance(lowered, Schedule):
        lowered = lower(lowered)
    schedule = lowered.schedule
    made_out = Costs(costs, schedule)
    run = _Run(lowered, costs, made_out)
    spans = run.spans()
    optimizer: list[tuple[float, float]] = []
    if any(made_out.optimizer):
        ends = [program[-1].end if program else 0.0 for program in spans]
        starts = [max(ends)] * len(ends) if costs.optimizer_waits else ends
        optimizer = [(start, start + cost) for start, cost in zip(starts, made_out.optimizer)]
    return Timeline(
        schedule=schedule,
        spans=tuple(span for program in spans for span in program),
        optimizer=tuple(optimizer),
        transfers=tuple(run.transfers.values()),
        costs=costs,
    )


class _Run:
    """The events of one simulated run: each rank advances until it waits for a message.

    transfers: by message, in the order in which they start on their channel.
    """

    def __init__(self, lowered: Lowered, costs: CostModel, made_out: Costs) -> None:
        self.transfers: dict[Message, Transfer] = {}
        self._lowered = lowered
        self._costs = made_out
        self._hop, self._transmission = costs.hop, costs.transmission
        self._spans: list[list[Span]] = [[] for _ in lowered.programs]
        # When the first of its two sides was there: the message sent, or its receive posted.
        self._one_side: dict[Message, float] = {}
        self._free: dict[Channel, float] = defaultdict(float)
        self._walk: Walk[Message] = Walk()

    def spans(self) -> list[list[Span]]:
        """Every rank's spans, in program order."""
        stuck = self._walk.follow(map(self._run, range(len(self._spans))))
        for rank, message in stuck.items():
            position = len(self._spans[rank])
            item = self._lowered.programs[rank][position].item
            raise ScheduleError(f"{at(rank, position, item)} waits forever for the {message}")
        return self._spans

    def _run(self, rank: int) -> Iterator[Message]:
        """Run the steps of `rank`; yields a message that it waits for, until that is sent."""
        transfers, done, duration = self.transfers, self._spans[rank], self._costs.duration
        clock = 0.0
        for receives, item, sends, waits in self._lowered.programs[rank]:
            for message in receives:
                self._meet(message, clock)
            start = clock
            for message in waits:
                if message not in transfers:
                    yield message
                start = max(start, transfers[message].end)
            clock = start + duration(rank, item)
            done.append(Span(rank, item, start, clock))
            for message in sends:
                self._meet(message, clock)

    def _meet(self, message: Message, time: float) -> None:
        """One side of `message` is there. Both sides keep their channel's order, so the second
        sides come in this order too."""
        first = self._one_side.pop(message, None)
        if first is None:
            self._one_side[message] = time
            return
        start = max(first, time)
        if self._transmission:
            channel = message.source, message.destination
            start = max(start, self._free[channel])
            self._free[channel] = start + self._transmission
        end = start + self._transmission + self._hop
        self.transfers[message] = Transfer(message, start, end)
        self._walk.happen(message)

"""Measured steps by the schedule's parts, as the planner splits simulated ones (StepParts).

A recorder marks where items and waits for messages of the pipeline begin and end: a few marks per
item, by the host's clock on a CPU and by events of the stream that computes on CUDA. Every moment
of a step belongs to one part; waiting for an all-to-all inside an item belongs to that item.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

from parallel.schedule.table import Item
from trainer.bench.exchange_times import MESSAGES
from trainer.bench.stamps import Stamp, seconds_between
from trainer.plan.step_time import StepParts, mean_parts, part_of

BUBBLE, OPTIMIZER = "bubble", "optimizer"


@dataclass(frozen=True)
class RankStep:
    """One step on one rank. parts: a wait for ranks whose items end later is in optimizer, where
    sums of gradients wait for them. items_end: of its last item, seconds of the host's clock."""

    parts: StepParts
    items_end: float


class PartsClock:
    """A recorder for the executor and the trainer; `item` is for Executor.on_item. now: `stamp` of
    the device."""

    def __init__(self, now: Callable[[], Stamp]) -> None:
        self._now = now
        self._marks: list[tuple[str, Stamp]] = []
        self._item_from = 0

    def start(self) -> None:
        """The step begins, with the optimizer's gradients set to zero."""
        self._marks.clear()
        self._mark(OPTIMIZER)

    def note(self, doing: str) -> None:
        """Something begins: the optimizer's, unless it ends as an item."""
        self._item_from = len(self._marks)
        self._mark(OPTIMIZER)

    def item(self, item: Item, start: float, end: float) -> None:
        part = part_of(item)
        for number in range(self._item_from, len(self._marks)):
            what, when = self._marks[number]
            self._marks[number] = (what if what == BUBBLE else part, when)

    def span(
        self, label: str, what: str, name: str, layer: str = ""
    ) -> AbstractContextManager[None]:
        return self._bubble() if what == "wait" and name in MESSAGES else nullcontext()

    def flight(self, label: str, name: str, start: float, pending: object) -> None:
        return None

    def stop(self) -> None:
        """The step has ended, on the stream if not yet on the GPU."""
        self._mark("")

    def step(self, started: float) -> RankStep:
        """Of the last step, which has ended on the GPU too. started: by the host's clock."""
        first = self._marks[0][1]
        times = [seconds_between(first, when) for _, when in self._marks]
        seconds: dict[str, float] = defaultdict(float)
        items_end = 0.0
        for (part, _), begin, end in zip(self._marks, times, times[1:]):
            seconds[part] += end - begin
            if part not in (BUBBLE, OPTIMIZER):
                items_end = end
        return RankStep(StepParts(**seconds), started + items_end)

    @contextmanager
    def _bubble(self) -> Iterator[None]:
        self._mark(BUBBLE)
        yield
        self._mark(OPTIMIZER)  # until `item` says better

    def _mark(self, part: str) -> None:
        self._marks.append((part, self._now()))


def mean_step(by_rank: Sequence[Sequence[RankStep]], one_clock: bool) -> StepParts:
    """Mean over ranks and steps. by_rank: the steps of each. one_clock: all ranks have the same, so
    that waiting for the last of them to end its items is bubble, as in a simulated step."""
    found = []
    for ranks in zip(*by_rank, strict=True):
        last = max(rank.items_end for rank in ranks)
        for rank in ranks:
            waited = min(last - rank.items_end, rank.parts.optimizer) if one_clock else 0.0
            bubble, optimizer = rank.parts.bubble + waited, rank.parts.optimizer - waited
            found.append(replace(rank.parts, bubble=bubble, optimizer=optimizer))
    return mean_parts(found)

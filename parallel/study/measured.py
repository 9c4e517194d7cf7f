"""A measured timeline: when each rank of a pipeline ran each item, by one clock.

The clock is the host's monotonic one, so all ranks must be on one machine. On CUDA an item's times
are those of its launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from parallel.schedule.table import Item, Schedule
from parallel.study.costs import CostModel
from parallel.study.timeline import Span, Timeline

TimedItems: TypeAlias = list[tuple[Item, float, float]]


@dataclass
class ItemClock:
    """Notes the items that an executor runs: `Executor(on_item=clock.note)`.

    items: (item, start, end) in the order run, in seconds of time.monotonic.
    """

    items: TimedItems = field(default_factory=list)

    def note(self, item: Item, start: float, end: float) -> None:
        self.items.append((item, start, end))

    def since(self, origin: float) -> TimedItems:
        """The items, their times counted from `origin`."""
        return [(item, start - origin, end - origin) for item, start, end in self.items]


def timeline_of(
    schedule: Schedule, by_rank: Sequence[TimedItems], costs: CostModel | None = None
) -> Timeline:
    """The timeline of items with their start and end in seconds, by pipeline rank.

    costs: of the memory.
    """
    spans = tuple(
        Span(rank, item, start, end)
        for rank, items in enumerate(by_rank)
        for item, start, end in items
    )
    return Timeline(schedule, spans, costs=costs or CostModel())

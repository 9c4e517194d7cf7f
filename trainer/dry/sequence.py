"""All that a rank calls in a step, in order, put together from a dry run of its kinds of items."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

from parallel.pipeline.completions import completions
from parallel.ranks.mesh import RankSet
from parallel.schedule.lower import Message, Step
from parallel.schedule.table import Item
from trainer.dry.distinct import completion_order, kind_of
from trainer.dry.observer import DryRunError
from trainer.dry.record import Call, Record

GroupKey: TypeAlias = tuple[bool, RankSet]
"""(whether it is a channel, its ranks)."""
AFTER = -1
_OF_GRADIENTS = ("all-reduce", "reduce-scatter")


class Entry(NamedTuple):
    """A call in a sequence. position: of the item that makes it, AFTER the last one. message: that
    is sent or received."""

    call: Call
    position: int
    message: Message | None = None

    def __str__(self) -> str:
        call = self.call
        rows = f" by rows {call.sent}" if call.sent else ""
        what = str(self.message) if self.message else f"{call.elements:,} {call.dtype}{rows}"
        return f"{call.kind} of {what}"

    @property
    def is_started_early(self) -> bool:
        """Whether it is a sum of gradients, which nothing waits for before the end of the step."""
        return self.call.kind in _OF_GRADIENTS and self.position != AFTER

    @property
    def form(self) -> tuple[object, ...]:
        """What members of its group must agree on."""
        return self.call.kind, self.call.dtype, self.call.elements


@dataclass(frozen=True)
class Sequence:
    """What one rank calls in a step, in order."""

    entries: tuple[Entry, ...]

    @cached_property
    def by_group(self) -> Mapping[GroupKey, tuple[Entry, ...]]:
        found: dict[GroupKey, list[Entry]] = defaultdict(list)
        for entry in self.entries:
            found[entry.message is not None, entry.call.ranks].append(entry)
        return {key: tuple(entries) for key, entries in found.items()}


def sequence_of(record: Record, program: Iterable[Step], pipeline: RankSet) -> Sequence:
    """record: of the distinct items of the rank that has `program`. pipeline: its world ranks.
    Raises DryRunError where what is called does not depend on the kind of item only."""
    steps = tuple(program)
    order = completion_order([Step((), item, (), ()) for item in record.items])
    if order != completion_order(steps):
        raise DryRunError(f"rank {record.rank}: gradients are complete in another order")
    return Sequence(tuple(_Parts(record, pipeline).entries(steps)))


class _Parts:
    """What a dry run has called, by kind of item, by completed stage, and after the items."""

    def __init__(self, record: Record, pipeline: RankSet) -> None:
        self.pipeline = pipeline
        self.of_item: dict[object, tuple[Call, ...]] = {}
        self.of_stage: dict[int, tuple[Call, ...]] = {}
        self.receive: Call | None = None
        calls: dict[int, list[Call]] = defaultdict(list)
        for call in record.calls:
            number = call.where.item
            calls[number].append(call._replace(where=call.where._replace(item=0)))
        self.after = tuple(calls.pop(0, ()))
        done = completions([Step((), item, (), ()) for item in record.items])
        for number, item in enumerate(record.items, start=1):
            self._add_item(record.rank, item, calls[number])
            for stage in done.get(number, ()):  # one at most: an item has one backward
                self.of_stage[stage] = tuple(c for c in calls[number] if c.kind in _OF_GRADIENTS)

    def _add_item(self, rank: int, item: Item, calls: list[Call]) -> None:
        made = tuple(c for c in calls if c.kind not in (*_OF_GRADIENTS, "receive"))
        self.receive = next((c for c in calls if c.kind == "receive"), self.receive)
        if self.of_item.setdefault(kind_of(item), made) != made:
            raise DryRunError(f"rank {rank}: {item} calls other things than one of its kind before")

    def entries(self, steps: tuple[Step, ...]) -> Iterator[Entry]:
        done = completions(steps)
        for position, step in enumerate(steps):
            for message in step.receives:
                assert self.receive is not None  # the distinct items have received something
                yield self._message(self.receive, position, message)
            sends = iter(step.sends)
            for call in self.of_item[kind_of(step.item)]:
                if call.kind == "send":
                    yield self._message(call, position, next(sends))
                else:
                    yield Entry(call, position)
            for stage in done.get(position + 1, ()):
                for call in self.of_stage[stage]:
                    yield Entry(call, position)
        for call in self.after:
            yield Entry(call, AFTER)

    def _message(self, call: Call, position: int, message: Message) -> Entry:
        ranks = self.pipeline[message.source], self.pipeline[message.destination]
        return Entry(call._replace(ranks=ranks), position, message)

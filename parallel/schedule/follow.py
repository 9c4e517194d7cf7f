"""Following programs: every rank runs on until it needs what another rank has not yet done.

    walk = Walk()
    stuck = walk.follow([program(rank, walk) for rank in range(ranks)])

A program is a generator. It yields the event that it is blocked on, if that has not happened yet,
and is resumed once it has; it calls `walk.happen(event)` for each event that it brings about. The
walk forgets events: a program that must know later that one has happened notes it, with its time or
whatever else it needs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

Event = TypeVar("Event", bound=Hashable)


class Walk(Generic[Event]):
    """One walk of all ranks through their programs."""

    def __init__(self) -> None:
        self._blocked: dict[Event, list[int]] = {}
        self._awake: list[int] = []

    def happen(self, event: Event) -> None:
        """Wake the ranks that are blocked on `event`."""
        if event in self._blocked:
            self._awake += self._blocked.pop(event)

    def follow(self, programs: Iterable[Iterator[Event]]) -> dict[int, Event]:
        """Run the programs, one per rank, as far as they go.

        Returns, by stuck rank, the event that it waits for; empty if all have ended.
        """
        ranks = list(programs)
        self._awake = list(range(len(ranks)))
        while self._awake:
            rank = self._awake.pop()
            event = next(ranks[rank], None)
            if event is not None:
                self._blocked.setdefault(event, []).append(rank)
        stuck = {rank: event for event, ranks in self._blocked.items() for rank in ranks}
        return dict(sorted(stuck.items()))

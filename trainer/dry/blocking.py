"""Whether ranks that block as early as they may still come to the end of the step.

Here every exchange between experts blocks its rank until all members have come to it, every send
until its receive is posted, and a receive that is posted everything that its rank calls after it.
Sums of gradients, which are started within the step and waited for at its end, block there; or, if
asked, where they are started, as on a device that synchronises by itself meanwhile. Real ranks
block less: whatever order of events is possible here is possible there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from parallel.ranks.mesh import RankSet
from parallel.schedule.follow import Walk
from trainer.dry.sequence import Entry

Event: TypeAlias = tuple[Any, ...]


def stuck_ranks(
    calls: Mapping[int, tuple[Entry, ...]], sums_block: bool = False
) -> dict[int, Entry]:
    """By rank that never ends, where it is stuck. calls: of each rank, in order; of a group only
    the ranks that are given count. sums_block: of gradients, where they are started."""
    walk: Walk[Event] = Walk()
    happened: set[Event] = set()
    at: dict[int, Entry] = {}

    def happen(event: Event) -> None:
        happened.add(event)
        walk.happen(event)

    def run(rank: int) -> Iterator[Event]:
        posted: list[Event] = []
        sums: list[Event] = []
        numbers: Counter[RankSet] = Counter()
        for entry in calls[rank]:
            at[rank] = entry
            message, ranks = entry.message, entry.call.ranks
            if entry.call.kind == "receive":
                happen(("posted", ranks, message))
                posted.append(("arrived", ranks, message))
                continue
            yield from (event for event in posted if event not in happened)
            posted.clear()
            if message is not None:
                if ("posted", ranks, message) not in happened:
                    yield "posted", ranks, message
                happen(("arrived", ranks, message))
                continue
            here = ranks, numbers[ranks]
            numbers[ranks] += 1
            happen((*here, rank))
            sums += [(*here, other) for other in ranks if other in calls]
            if sums_block or not entry.is_started_early:
                yield from (event for event in sums if event not in happened)
                sums.clear()

    ranks = list(calls)
    stuck = walk.follow(map(run, ranks))
    return {ranks[index]: at[ranks[index]] for index in stuck}

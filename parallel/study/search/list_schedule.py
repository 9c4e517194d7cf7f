"""List scheduling: an order for any chain, any number of micro-batches and any cap.

Whenever a rank is free it takes what is ready, best first: a pair, a backward, a forward; where
nothing is, it waits. Of several stages the last goes first, as it is nearest to its backward.

Memory. A forward leaves one activation free for each later stage of its rank. So the last stage can
always go on: its backward needs nothing but its own forward, and frees it again. So the stage
before can go on, and so can all, one after the other. Where pairs are quicker than their parts, and
the cap allows, a forward alone leaves room for one more: a pair holds both of its micro-batches.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import NamedTuple

from parallel.study.search.chain import TIE, Chain
from parallel.study.search.turns import NONE, Turn, Turns


class _Event(NamedTuple):
    """At `time` a rank may take a turn; one forward or backward of a stage is ready, or nothing."""

    time: float
    rank: int
    ready: Turn


def list_schedule(chain: Chain) -> list[Turns]:
    """The turns of every rank."""
    ranks = [_Rank(chain, rank) for rank in range(chain.ranks)]
    events = [_Event(0.0, chain.rank_of[0], Turn(forward=0))] * chain.micro_batches
    heapify(events)
    while events:
        time = events[0].time
        awake = set()
        while events and events[0].time <= time + TIE:  # all that is ready by now first
            _, rank, ready = heappop(events)
            ranks[rank].ready[ready] += 1
            awake.add(rank)
        for rank in sorted(awake):
            if ranks[rank].free_at > time + TIE or not (turn := ranks[rank].take(time)):
                continue
            heappush(events, _Event(ranks[rank].free_at, rank, Turn()))
            for event in _made(chain, turn, ranks[rank].free_at):
                heappush(events, event)
    return [rank.turns for rank in ranks]


def _made(chain: Chain, turn: Turn, end: float) -> list[_Event]:
    """What a turn makes ready."""
    forward, backward = turn
    events = []
    if forward == chain.stages - 1:
        events.append(_Event(end, chain.rank_of[forward], Turn(backward=forward)))
    elif forward != NONE:
        arrival = end + chain.transit[forward]
        events.append(_Event(arrival, chain.rank_of[forward + 1], Turn(forward=forward + 1)))
    if backward > 0:
        arrival = end + chain.transit[backward - 1]
        events.append(_Event(arrival, chain.rank_of[backward - 1], Turn(backward=backward - 1)))
    return events


class _Rank:
    """One rank as it takes its turns. ready: how many of each single turn could run."""

    def __init__(self, chain: Chain, rank: int) -> None:
        self._chain, self._stages = chain, chain.stages_of(rank)[::-1]
        singles = [Turn()]
        for stage in self._stages:
            singles += [Turn(forward=stage), Turn(backward=stage)]
        self.ready = dict.fromkeys(singles, 0)
        self.turns: Turns = []
        self.free_at = 0.0
        self._held = 0
        self._spare = int(chain.pairs_pay(rank) and chain.cap > len(self._stages))

    def take(self, time: float) -> Turn | None:
        """Start the best turn that is ready, if any."""
        turn = self._best()
        if turn is None:
            return None
        forward, backward = turn
        for single in (Turn(forward=forward), Turn(backward=backward)):
            self.ready[single] -= 1
        self._held += (forward != NONE) - (backward != NONE)
        self.free_at = time + self._chain.duration(turn)
        self.free_at += self._chain.weight_grad[backward] if forward == NONE else 0.0
        self.turns.append(turn)
        return turn

    def _best(self) -> Turn | None:
        forward = next((s for s in self._stages if self.ready[Turn(s)] and self._room(s) > 0), NONE)
        backward = next((s for s in self._stages if self.ready[Turn(NONE, s)]), NONE)
        if backward != NONE:
            pays = forward != NONE and self._chain.saving(forward, backward) > TIE
            return Turn(forward if pays else NONE, backward)
        if forward != NONE and self._room(forward) > self._spare:
            return Turn(forward)
        return None

    def _room(self, forward: int) -> int:
        """How many activations of a stage could be added."""
        return self._chain.cap - self._held - self._stages.index(forward)

"""The chain: what a search works on.

A micro-batch goes through a chain of stages, forward and then back, and each stage lies on a rank.
A placement with one flow is a chain as it is. With two flows in opposite directions (DualPipe),
rank P - 1 - r holds what rank r holds, with the flows exchanged. So let it do what rank r does,
with the flows exchanged: then the first half of the ranks says all, and a micro-batch that goes on
from rank r to a rank of the second half goes on, in its mirror image, to one of the first half.
The search works on this folded chain, and its table is unfolded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from parallel.schedule.table import (
    Action,
    Item,
    Kind,
    Overlap,
    Placement,
    Program,
    Schedule,
    ScheduleError,
    actions,
)
from parallel.study.costs import CostModel, Costs
from parallel.study.search.turns import NONE, Turn

SEARCHED = "searched"  # the name of a table that has been found
TIE = 1e-9  # times closer than this are equal


@dataclass(frozen=True)
class Chain:
    """Stages, the ranks that they lie on, and costs, all in the unit of the cost model.

    rank_of, forward, input_grad, weight_grad: by stage. pair: by the stages of a pair's forward and
    backward, for those on one rank. transit: by stage, how long what it sends on to the next, or
    the next sends back to it, is under way. after: by rank, its optimizer. cap: activations of a
    stage that a rank holds at most. micro_batches: that go through. placement: unfolded.
    """

    placement: Placement
    micro_batches: int
    cap: int
    rank_of: tuple[int, ...]
    forward: tuple[float, ...]
    input_grad: tuple[float, ...]
    weight_grad: tuple[float, ...]
    pair: dict[tuple[int, int], float]
    transit: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def ranks(self) -> int:
        return len(self.after)

    @property
    def stages(self) -> int:
        return len(self.rank_of)

    def stages_of(self, rank: int) -> list[int]:
        return [stage for stage, holder in enumerate(self.rank_of) if holder == rank]

    def saving(self, forward: int, backward: int) -> float:
        """By how much a pair takes less than its parts."""
        alone = self.forward[forward] + self.input_grad[backward] + self.weight_grad[backward]
        return alone - self.pair[forward, backward]

    def pairs_pay(self, rank: int) -> bool:
        """Whether a pair of this rank takes less than its parts."""
        stages = self.stages_of(rank)
        return any(self.saving(f, b) > TIE for f in stages for b in stages)

    def duration(self, turn: Turn) -> float:
        """How long a turn takes."""
        if turn.backward == NONE:
            return self.forward[turn.forward]
        if turn.forward == NONE:
            return self.input_grad[turn.backward]
        return self.pair[turn]

    def unfolded(self, programs: list[Program]) -> Schedule:
        """The table in which the ranks of the chain run these programs, all of flow 0."""
        flows = 1 + max(flow for flow, _ in self.placement)
        ranks = self.ranks * flows
        tables = []
        for rank in range(ranks):
            folded = min(rank, ranks - 1 - rank) if flows == 2 else rank
            tables.append(tuple(self._moved(item, rank) for item in programs[folded]))
        count = self.micro_batches * flows
        return Schedule(SEARCHED, ranks, count, self.placement, tuple(tables))

    def _moved(self, item: Item, rank: int) -> Item:
        """`item` in the flow in which `rank` holds its stages."""
        moved = [
            Action(a.kind, int(self.placement[0, a.stage] != rank), a.stage, a.micro_batch)
            for a in actions(item)
        ]
        return Overlap(*moved) if isinstance(item, Overlap) else moved[0]


def chain_of(
    placement: Placement, micro_batches: int, costs: CostModel, memory_cap: float | None
) -> Chain:
    """The chain of a placement.

    memory_cap: activations that a rank holds at most, in full stages; as many as DualPipe by
    default, ranks + 1 with two flows, and ranks + 1 / stages per rank with one.
    Raises ScheduleError for placements that are neither one flow nor two opposite ones, costs that
    do not fit, and a cap that does not hold one micro-batch.
    """
    ranks = 1 + max(placement.values())
    schedule = Schedule(SEARCHED, ranks, micro_batches, placement, ((),) * ranks)
    flows, stages = schedule.flows, range(schedule.stages)
    if micro_batches % flows:
        raise ScheduleError(f"{micro_batches} micro-batches do not divide into {flows} flows")
    made_out = Costs(costs, schedule)
    if flows > 1:
        _require_opposite(schedule, made_out)
    rank_of = [placement[0, stage] for stage in stages]

    def each(kind: Kind) -> tuple[float, ...]:
        return tuple(made_out.duration(rank_of[s], Action(kind, 0, s, 0)) for s in stages)

    holders = [min(r, ranks - 1 - r) if flows == 2 else r for r in rank_of]
    pair = {
        (f, b): made_out.duration(holders[f], Overlap(Action("F", 0, f, 0), Action("B", 0, b, 0)))
        for f in stages
        for b in stages
        if holders[f] == holders[b]
    }
    hop = costs.hop + costs.transmission
    crossed = zip(rank_of, [*rank_of[1:], rank_of[-1]])
    optimizer = made_out.optimizer[: ranks // flows]
    after = [max(optimizer)] * len(optimizer) if costs.optimizer_waits else optimizer
    return Chain(
        placement=dict(placement),
        micro_batches=micro_batches // flows,
        cap=_cap(schedule, memory_cap),
        rank_of=tuple(holders),
        forward=each("F"),
        input_grad=each("I"),
        weight_grad=each("W"),
        pair=pair,
        transit=tuple(0.0 if here == there else hop for here, there in crossed),
        after=tuple(after),
    )


def _cap(schedule: Schedule, memory_cap: float | None) -> int:
    """The cap in activations of a stage."""
    share = schedule.stage_share
    if memory_cap is None:
        return round(schedule.ranks / share) + 1
    cap = math.floor(memory_cap / share + TIE)
    least = max(len(schedule.stages_of(rank)) for rank in range(schedule.ranks))
    if cap < least:
        raise ScheduleError(
            f"searched needs a memory cap of at least {least * share:g}, got {memory_cap:g}"
        )
    return cap


def _require_opposite(schedule: Schedule, costs: Costs) -> None:
    """Check that rank P - 1 - r is rank r with the flows exchanged."""
    ranks, placement = schedule.ranks, schedule.placement
    opposite = schedule.flows == 2 and ranks % 2 == 0
    for stage in range(schedule.stages) if opposite else ():
        opposite &= placement.get((1, stage)) == ranks - 1 - placement[0, stage]
    if not opposite:
        raise ScheduleError("searched needs one flow, or two in opposite directions")
    pair = Overlap(Action("F", 0, 0, 0), Action("B", 0, 0, 0))
    for rank in range(ranks // 2):
        mirror = ranks - 1 - rank
        if costs.duration(rank, pair) != costs.duration(mirror, pair):
            raise ScheduleError(
                f"searched with two flows needs the same pair_factor on ranks {rank} and {mirror}"
            )

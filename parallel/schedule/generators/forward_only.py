"""Forwards only, over the stages a training schedule has placed: what evaluation runs."""

from __future__ import annotations

from parallel.schedule.settings import require_counts
from parallel.schedule.table import Action, Placement, Schedule


def forward_only(placement: Placement, micro_batches: int) -> Schedule:
    """Every micro-batch forward through flow 0 of `placement`; other flows are left out.

    Each stage of a micro-batch has the time slot after the one before, so no rank can wait forever.
    With one stage per rank it is micro-batch after micro-batch. On a V, where a rank's two stages
    differ in parity, the two take turns: micro-batch m starts v m slots after the first, for v
    stages per rank. Where stages are placed round-robin, P micro-batches run one after the other
    before the first is back. Either way no slot of a rank is wanted twice, and the busiest never
    idles between its first and last forward, which no order beats.
    Raises ScheduleError for fewer than one micro-batch.
    """
    flow0 = {place: rank for place, rank in placement.items() if place[0] == 0}
    ranks = 1 + max(flow0.values())
    require_counts("forward-only", ranks, micro_batches)
    stages_per_rank = len(flow0) // ranks
    group = ranks if flow0.get((0, ranks)) == 0 else 1

    def slot(action: Action) -> int:
        groups, place = divmod(action.micro_batch, group)
        return action.stage + place + groups * group * stages_per_rank

    order = sorted(
        (Action("F", 0, stage, m) for _, stage in flow0 for m in range(micro_batches)), key=slot
    )
    programs = tuple(
        tuple(action for action in order if flow0[0, action.stage] == rank) for rank in range(ranks)
    )
    return Schedule("forward-only", ranks, micro_batches, flow0, programs, training=False)

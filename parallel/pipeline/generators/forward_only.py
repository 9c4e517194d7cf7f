"""Forwards only, over the stages a training schedule has placed: what evaluation runs."""

from __future__ import annotations

from parallel.pipeline.schedule import Action, Placement, Schedule, require_counts


def forward_only(placement: Placement, micro_batches: int) -> Schedule:
    """Every micro-batch forward through flow 0 of `placement`; other flows are left out.

    Stage s runs micro-batch m in the order of s + v m, for v stages a rank. An action comes after
    its input in that order, so no rank can wait for ever; with one stage a rank it is micro-batch
    after micro-batch, and on a V, where a rank's two stages differ in parity, the two take turns:
    the last rank never idles between its first and last forward, which no order beats.
    Raises ScheduleError for fewer than one micro-batch.
    """
    flow0 = {place: rank for place, rank in placement.items() if place[0] == 0}
    ranks = 1 + max(flow0.values())
    require_counts("forward-only", ranks, micro_batches)
    stages_a_rank = len(flow0) // ranks
    order = sorted(
        (Action("F", 0, stage, m) for _, stage in flow0 for m in range(micro_batches)),
        key=lambda action: (action.stage + stages_a_rank * action.micro_batch, action.stage),
    )
    programs = tuple(
        tuple(action for action in order if flow0[0, action.stage] == rank) for rank in range(ranks)
    )
    return Schedule("forward-only", ranks, micro_batches, flow0, programs, training=False)

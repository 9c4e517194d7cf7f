"""ZB-H1 and ZB-H2 (arXiv 2401.10241, section 2.3): weight gradients fill what 1F1B leaves idle.

Both are 1F1B with the backward split. Other ranks wait for I only, so it goes first; W is put off
to where the rank would idle, at the end. A rank that starts later has fewer micro-batches in
flight, and delays W by as many more, so that the peak is the same on every rank.
"""

from __future__ import annotations

from parallel.schedule.generators.placements import one_stage_each
from parallel.schedule.generators.writer import Writer
from parallel.schedule.settings import require_counts
from parallel.schedule.table import Program, Schedule


def zb_h1(ranks: int, micro_batches: int) -> Schedule:
    """ZB-H1 for any number of ranks and micro-batches, with the memory of 1F1B.

    Every rank holds `ranks` activations at most. Raises ScheduleError for a count below 1.
    """
    return _schedule("zb-h1", ranks, micro_batches, 1)


def zb_h2(ranks: int, micro_batches: int) -> Schedule:
    """ZB-H2 for any number of ranks and micro-batches: no rank idles between its first and last
    item where F, I and W cost the same.

    Every rank holds 2 x ranks - 1 activations at most. Raises ScheduleError for a count below 1.
    """
    return _schedule("zb-h2", ranks, micro_batches, 2)


def _schedule(name: str, ranks: int, micro_batches: int, depth: int) -> Schedule:
    """depth: forwards to start with, for each stage between a rank's own and the last one."""
    require_counts(name, ranks, micro_batches)
    placement = one_stage_each(ranks)
    programs = tuple(
        _program(rank, depth * (ranks - 1 - rank), depth * rank, micro_batches)
        for rank in range(ranks)
    )
    return Schedule(name, ranks, micro_batches, placement, programs)


def _program(stage: int, warm_up: int, kept_back: int, micro_batches: int) -> Program:
    """warm_up: forwards before the first F I. kept_back: by how many items I runs ahead of W."""
    rank = Writer(((0, stage),), micro_batches)
    turns = max(micro_batches - warm_up, kept_back + 1)  # the writer leaves out the excess

    for _ in range(warm_up):
        rank.forward()

    # The steady state, F I W.
    for turn in range(turns):
        rank.forward()
        rank.backward("I")
        if turn >= kept_back:
            rank.weights()

    # No forwards left: W fills the wait for the next input gradient.
    for _ in range(warm_up):
        rank.backward("I")
        rank.weights()

    for _ in range(kept_back):
        rank.weights()

    return rank.program

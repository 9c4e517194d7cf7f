"""Interleaved 1F1B (arXiv 2104.04473, section 2.2): several stages per rank, for a shorter fill.

Stage s is on rank s mod P. A rank takes its stages in turn, P micro-batches at a time, which is
how long the first of them needs to come round to it again.
"""

from __future__ import annotations

from parallel.schedule.settings import Setting, SettingError, require_counts
from parallel.schedule.table import Action, Program, Schedule, ScheduleError


def interleaved(ranks: int, micro_batches: int, stages_per_rank: int = 2) -> Schedule:
    """Interleaved 1F1B with v = `stages_per_rank` stages per rank, in the order of Megatron-LM.

    Rank 0 holds (2 (ranks - 1) + 1) / v + ranks (v - 1) / v activations at most, in full stages.
    Raises ScheduleError unless micro_batches is a multiple of ranks.
    """
    require_counts("interleaved", ranks, micro_batches)
    if stages_per_rank < 1:
        raise ScheduleError(f"interleaved needs at least 1 stage per rank, got {stages_per_rank}")
    if micro_batches % ranks:
        above = micro_batches + ranks - micro_batches % ranks
        raise SettingError(
            "interleaved needs ", Setting.MICRO_BATCHES, " to be a multiple of ", Setting.RANKS,
            f" = {ranks}, got {micro_batches}: set ", Setting.MICRO_BATCHES, f" to {above}",
        )  # fmt: skip
    placement = {(0, stage): stage % ranks for stage in range(stages_per_rank * ranks)}
    programs = tuple(_program(rank, ranks, micro_batches, stages_per_rank) for rank in range(ranks))
    return Schedule("interleaved", ranks, micro_batches, placement, programs)


def _program(rank: int, ranks: int, micro_batches: int, stages_per_rank: int) -> Program:
    forwards, backwards = [], []
    for first in range(0, micro_batches, ranks):
        group = range(first, first + ranks)
        stages = range(rank, stages_per_rank * ranks, ranks)
        forwards += [Action("F", 0, stage, m) for stage in stages for m in group]
        backwards += [Action("B", 0, stage, m) for stage in reversed(stages) for m in group]

    # Warm-up: to the first backward of the last stage, and two for each rank on its way here.
    warm_up = min(ranks * (stages_per_rank - 1) + 2 * (ranks - 1 - rank), len(forwards))
    items = forwards[:warm_up]
    for forward, backward in zip(forwards[warm_up:], backwards):
        items += [forward, backward]
    return (*items, *backwards[len(forwards) - warm_up :])

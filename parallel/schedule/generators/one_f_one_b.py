"""1F1B (PipeDream-Flush, arXiv 2006.09503): a backward as soon as there is one to run."""

from __future__ import annotations

from parallel.schedule.generators.placements import one_stage_each
from parallel.schedule.settings import require_counts
from parallel.schedule.table import Action, Program, Schedule


def one_f_one_b(ranks: int, micro_batches: int) -> Schedule:
    """1F1B for any number of ranks and micro-batches; rank r holds at most ranks - r activations.

    Raises ScheduleError for a count below 1.
    """
    require_counts("1f1b", ranks, micro_batches)
    placement = one_stage_each(ranks)
    programs = tuple(_program(rank, ranks, micro_batches) for rank in range(ranks))
    return Schedule("1f1b", ranks, micro_batches, placement, programs)


def _program(stage: int, ranks: int, micro_batches: int) -> Program:
    # Warm-up: one forward for each stage that lies between this one and the first backward.
    warm_up = min(ranks - stage - 1, micro_batches)
    items = [Action("F", 0, stage, m) for m in range(warm_up)]
    for m in range(micro_batches - warm_up):
        items += [Action("F", 0, stage, warm_up + m), Action("B", 0, stage, m)]
    items += [Action("B", 0, stage, m) for m in range(micro_batches - warm_up, micro_batches)]
    return tuple(items)

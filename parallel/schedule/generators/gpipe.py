"""GPipe (arXiv 1811.06965): every forward, then every backward."""

from __future__ import annotations

from parallel.schedule.generators.placements import one_stage_each
from parallel.schedule.settings import require_counts
from parallel.schedule.table import Action, Program, Schedule


def gpipe(ranks: int, micro_batches: int) -> Schedule:
    """GPipe for any number of ranks and micro-batches; holds `micro_batches` activations per rank.

    Raises ScheduleError for a count below 1.
    """
    require_counts("gpipe", ranks, micro_batches)
    placement = one_stage_each(ranks)
    programs = tuple(_program(rank, micro_batches) for rank in range(ranks))
    return Schedule("gpipe", ranks, micro_batches, placement, programs)


def _program(stage: int, micro_batches: int) -> Program:
    # Backwards in forward order: the last stage frees the oldest activation first.
    return tuple(Action(kind, 0, stage, m) for kind in ("F", "B") for m in range(micro_batches))

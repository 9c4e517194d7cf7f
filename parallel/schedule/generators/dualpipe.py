"""DualPipe and DualPipeV (arXiv 2412.19437, section 3.2.1): pairs that hide their communication.

Both schedules run the same eight steps. A rank holds two stages, its *phases* 0 and 1. DualPipeV
folds one flow into a V: phase 0 is the stage on the way down, phase 1 the one on the way back.
DualPipe sends a second flow the other way instead, so its second half of the ranks is the mirror
of the first: phase 0 there is flow 1. Hence DualPipe(2P, 2C), rank r < P, is DualPipeV(P, C),
rank r.
"""

from __future__ import annotations

from parallel.schedule.generators.eight_steps import program
from parallel.schedule.generators.placements import one_stage_each, v_placement
from parallel.schedule.settings import Setting, SettingError, require_counts
from parallel.schedule.table import Schedule


def dualpipe(ranks: int, micro_batches: int) -> Schedule:
    """DualPipe: rank r holds (flow 0, stage r) and (flow 1, stage ranks - 1 - r).

    Flow 1 enters the model's stage 0 at the last rank. Each flow has half of the micro-batches;
    parameters are held twice, ranks + 1 activations at most. With fewer than 2 x ranks
    micro-batches, which the published code refuses, there are pairs left only in the middle.
    Raises SettingError unless both counts are even.
    """
    require_counts("dualpipe", ranks, micro_batches)
    if ranks % 2:
        raise SettingError(
            "dualpipe needs ", Setting.RANKS, f" to be even, got {ranks}: set ", Setting.RANKS,
            f" to {ranks + 1}, or ", Setting.SCHEDULE, " to dualpipev",
        )  # fmt: skip
    if micro_batches % 2:
        raise SettingError(
            "dualpipe needs ", Setting.MICRO_BATCHES, f" to be even, got {micro_batches}: set ",
            Setting.MICRO_BATCHES, f" to {micro_batches + 1}",
        )  # fmt: skip
    half = ranks // 2
    programs = []
    for rank in range(ranks):
        places = ((0, rank), (1, ranks - 1 - rank))
        if rank < half:
            programs.append(program(half, rank, micro_batches // 2, places))
        else:
            programs.append(program(half, ranks - 1 - rank, micro_batches // 2, places[::-1]))
    placement = one_stage_each(ranks)
    placement |= {(1, ranks - 1 - rank): rank for rank in range(ranks)}
    return Schedule("dualpipe", ranks, micro_batches, placement, tuple(programs))


def dualpipev(ranks: int, micro_batches: int) -> Schedule:
    """DualPipeV: rank r holds stages r and 2 x ranks - 1 - r of one flow.

    Parameters are held once, ranks + 1/2 activations at most (in full stages, two of these).
    Fewer than 2 x ranks micro-batches as dualpipe. Raises SettingError for a count below 1.
    """
    require_counts("dualpipev", ranks, micro_batches)
    programs = []
    for rank in range(ranks):
        places = ((0, rank), (0, 2 * ranks - 1 - rank))
        programs.append(program(ranks, rank, micro_batches, places))
    return Schedule("dualpipev", ranks, micro_batches, v_placement(ranks), tuple(programs))

"""Which rank holds which stage, for the placements that several schedules share."""

from __future__ import annotations


def one_stage_each(ranks: int) -> dict[tuple[int, int], int]:
    """Rank r holds stage r of one flow."""
    return {(0, rank): rank for rank in range(ranks)}


def v_placement(ranks: int) -> dict[tuple[int, int], int]:
    """Rank r holds stages r and 2 x ranks - 1 - r of one flow."""
    return {(0, stage): min(stage, 2 * ranks - 1 - stage) for stage in range(2 * ranks)}

"""ZBV (arXiv 2405.15362, ZB-V): the zero-bubble split on a V, in the memory of 1F1B.

A rank holds stages r and 2P - 1 - r, its phases 0 and 1: the last stage is on the first rank, so
backwards start early, and all ranks hold equally many activations.
"""

from __future__ import annotations

from parallel.schedule.generators.placements import v_placement
from parallel.schedule.generators.writer import Place, Writer
from parallel.schedule.settings import require_counts
from parallel.schedule.table import Program, Schedule


def zbv(ranks: int, micro_batches: int) -> Schedule:
    """ZBV for any number of ranks and micro-batches; without idle time between a rank's first and
    last item where F, I and W cost the same and micro_batches >= 2 x ranks.

    Every rank holds `ranks` activations at most, in full stages, two of these.
    Raises ScheduleError for a count below 1.
    """
    require_counts("zbv", ranks, micro_batches)
    programs = []
    for rank in range(ranks):
        places = ((0, rank), (0, 2 * ranks - 1 - rank))
        programs.append(_program(ranks, rank, micro_batches, places))
    return Schedule("zbv", ranks, micro_batches, v_placement(ranks), tuple(programs))


def _program(ranks: int, depth: int, micro_batches: int, places: tuple[Place, Place]) -> Program:
    """One rank's program. depth: its distance from the first rank; places: of phases 0 and 1."""
    rank = Writer(places, micro_batches)
    inner = ranks - depth  # ranks from this one to the turn, itself included
    # The least that fills the V; with fewer micro-batches the writer leaves out the excess.
    turns = max(micro_batches, 2 * ranks - 1) - ranks

    # F0, to fill the ranks between here and the turn and back.
    for _ in range(2 * inner - 1):
        rank.forward(0)

    # F1 F0, the way back has arrived.
    for _ in range(depth):
        rank.forward(1)
        rank.forward(0)

    # F1 I1 W1, the first backwards, which have only just started to come back.
    for _ in range(inner):
        rank.forward(1)
        rank.backward("I", 1)
        rank.weights()

    # The steady state: each phase in turn.
    for _ in range(turns):
        rank.forward(0)
        rank.backward("I", 0)
        rank.weights()
        rank.forward(1)
        rank.backward("I", 1)
        rank.weights()

    # No forwards left: the input gradients first, which other ranks wait for.
    for _ in range(depth):
        rank.backward("I", 0)
        rank.backward("I", 1)

    # Weight gradients fill the wait for the last input gradients.
    for _ in range(inner):
        rank.backward("I", 0)
        rank.weights()

    for _ in range(2 * depth):
        rank.weights()

    return rank.program

"""The eight steps of DualPipe and DualPipeV, for one rank.

Source: DeepSeek-V3 technical report (arXiv 2412.19437), section 3.2.1, and the published code
(github.com/deepseek-ai/DualPipe, commit 3da1bbe), whose compute order this table reproduces.
"""

from __future__ import annotations

from parallel.schedule.generators.writer import Place, Writer
from parallel.schedule.table import Program


def program(half: int, depth: int, micro_batches: int, places: tuple[Place, Place]) -> Program:
    """One rank's program.

    half: ranks from an end of the pipeline to its middle (to its turn, in a V); depth: this
    rank's distance from its end; micro_batches: of one phase; places: (flow, stage) of phases 0, 1.
    The published steps need 2 x half micro-batches; with fewer, they are written for so many, and
    the writer leaves out the excess.
    """
    rank = Writer(places, micro_batches)
    written = max(micro_batches, 2 * half)
    inner = half - 1 - depth  # ranks between this one and the middle

    # Step 1: F0, to fill the ranks between here and the middle.
    for _ in range(2 * inner):
        rank.forward(0)

    # Step 2: F0 F1, the other phase has arrived.
    for _ in range(depth + 1):
        rank.forward(0)
        rank.forward(1)

    # Step 3: I1 W1 F1, the first backwards; the neighbour waits for the input gradient only.
    for _ in range(inner):
        rank.backward("I", 1)
        rank.weights()
        rank.forward(1)

    # Step 4: F0&B1 F1&B0, the steady state, where each pair hides its own communication.
    for turn in range(written - 2 * half + depth + 1):
        if turn == 0 and inner == 0:
            # In the middle the neighbour waits for this very forward: sent before the backward.
            rank.forward(0)
            rank.backward("B", 1)
        else:
            rank.overlap(0, 1)
        rank.overlap(1, 0)

    # Step 5: B1 F1&B0, phase 0 has no forwards left.
    for _ in range(inner):
        rank.backward("B", 1)
        rank.overlap(1, 0)

    # Step 6: B1 B0, no forwards left at all; the second half only I, so gradients leave sooner.
    for turn in range(2 * (depth + 1)):
        rank.backward("B" if turn <= depth else "I", 1 - turn % 2)

    # Step 7: W I0, weight gradients fill the wait for the last input gradients.
    for _ in range(inner):
        rank.weights()
        rank.backward("I", 0)

    # Step 8: W, all that remain.
    for _ in range(depth + 1):
        rank.weights()

    return rank.program

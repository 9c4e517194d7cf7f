"""Weight gradients that wait: the split of a backward into I and W.

A layer whose backward returns the input gradient and defers the weight gradient costs nothing
extra, and lets the schedule decide when the weight gradient runs: while a collective is in flight,
or in an idle slot of the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import torch


class WeightTiming(Enum):
    """When a backward pass runs the weight gradients that its products leave."""

    WHILE_IN_FLIGHT = "while the next reverse collective is in flight"  # B
    AT_ONCE = "before the next reverse collective starts"  # B with overlap off: hides nothing
    LATER = "not in this pass"  # I; the schedule's W drains the queue


class WeightGradients:
    """A queue of weight gradients that have not been computed yet.

    waits: whether what is deferred is queued. Where nothing is to go first it runs at once, while
    its operands are in the cache, and they need not be kept.
    """

    def __init__(self) -> None:
        self.waits = True
        self._queue: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._queue)

    def defer(self, accumulate: Callable[[], None]) -> None:
        """Queue a computation that adds one weight's gradient to what it has accumulated."""
        if self.waits:
            self._queue.append(accumulate)
        else:
            accumulate()

    def take(self, other: WeightGradients) -> None:
        """Move all that is queued in `other` to the end of this queue."""
        self._queue += other._queue
        other._queue = []

    def drain(self) -> None:
        """Run and forget all that is queued, without building a graph."""
        queue, self._queue = self._queue, []
        with torch.no_grad():
            while queue:
                queue.pop(0)()

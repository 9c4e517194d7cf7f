"""Loss spikes: a loss far above those of the steps before.

Far is in robust standard deviations, 1.4826 x the median distance from the median, over the last
128 losses: an earlier spike among them does not widen these. The default threshold, 7, is that of
OLMo 2's spike score (arXiv 2501.00656), which takes plain deviations over 1,000 steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

WINDOW = 128
_FEWEST = 32  # losses before which nothing counts as a spike
_NORMAL = 1.4826  # standard deviation of a normal distribution over its median distance
# Losses on a small text may be nearly equal: a deviation is at least this share of the median.
_LEAST = 0.01


@dataclass(frozen=True)
class Spike:
    """deviations: how many robust standard deviations `loss` is above the median."""

    loss: float
    median: float
    deviations: float

    def __str__(self) -> str:
        return (
            f"the loss is {self.loss:.4f}, {self.deviations:.1f} robust standard deviations above "
            f"the median of the steps before, {self.median:.4f}"
        )


def find_spike(losses: Sequence[float], loss: float, threshold: float) -> Spike | None:
    """Whether a finite `loss` after `losses`, the oldest first, is more than `threshold` robust
    standard deviations above them."""
    if len(losses) < _FEWEST:
        return None
    middle = median(losses)
    spread = _NORMAL * median(abs(one - middle) for one in losses)
    deviations = (loss - middle) / max(spread, _LEAST * abs(middle), 1e-12)
    return Spike(loss, middle, deviations) if deviations > threshold else None

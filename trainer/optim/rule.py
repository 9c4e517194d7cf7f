"""What a rule of optimization sees of the weights: pieces of flat buffers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from parallel.reduce.bucket import Bucket
from trainer.optim.state import TensorsOf


@dataclass(frozen=True)
class Piece:
    """Consecutive elements of a bucket that this rank updates, all 1-D.

    start: in the bucket's flat buffers. shape: as what the rule sees them. master: float32 or
    wider; `values` itself where the weights are that wide. state: by kind, such as "exp_avg".
    """

    start: int
    shape: tuple[int, ...]
    values: Tensor
    gradient: Tensor
    master: Tensor
    state: dict[str, Tensor]


class Rule(Protocol):
    """How weights follow from gradients."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The state that it keeps of each weight."""

    def cut(self, bucket: Bucket, tensors_of: TensorsOf) -> tuple[tuple[tuple[int, int], ...], ...]:
        """The shares of the copies of a bucket, where they are to share the work."""

    def pieces(
        self, bucket: Bucket, tensors_of: TensorsOf, start: int, stop: int
    ) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """A range of a bucket as (first, last + 1, shape): what it updates at once."""

    def update(self, piece: Piece, learning_rate: float, updates: Tensor) -> None:
        """Make master and state what they are after one more update. updates: those before it."""

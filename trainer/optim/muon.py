"""Muon: momentum, made orthogonal, as the update of a matrix.

As torch.optim.Muon with adjust_lr_fn="match_rms_adamw": an update is as large as AdamW's, so both
take the same learning rate. Every matrix of the released checkpoints is one of its own: each
expert's gate, up and down projection.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from parallel.reduce.bucket import Bucket
from parallel.reduce.share import Cut, Ranges
from trainer.config.schema import OptimizerConfig
from trainer.optim.newton_schulz import ITERATIONS, cost, orthogonalised
from trainer.optim.rule import Piece
from trainer.optim.state import TensorsOf, released_slices

_AT_ONCE = 2**26  # elements of the matrices that are made orthogonal together


@dataclass(frozen=True)
class Muon:
    """Muon (https://kellerjordan.github.io/posts/muon/) with Nesterov momentum and decoupled weight
    decay; the size of its update as in arXiv 2502.16982."""

    config: OptimizerConfig
    kinds: tuple[str, ...] = ("momentum",)

    def cut(self, bucket: Bucket, tensors_of: TensorsOf) -> Cut:
        """Whole matrices, dealt out by cost: the most expensive first, to the copy that has the
        least (longest processing time). Of one shape, each copy gets neighbours."""
        by_shape: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for tensor, _, _, place in released_slices(bucket, tensors_of, 0, len(bucket.values)):
            by_shape.setdefault(tensor.shape, []).append((place, place + tensor.size))
        load = [0] * len(bucket.ranks)
        shares: list[list[tuple[int, int]]] = [[] for _ in bucket.ranks]
        for shape in sorted(by_shape, key=lambda shape: (-cost(*shape), shape)):
            counts = [0] * len(load)
            for _ in by_shape[shape]:
                copy = load.index(min(load))
                load[copy] += cost(*shape)
                counts[copy] += 1
            matrices = iter(by_shape[shape])
            for share, count in zip(shares, counts):
                share.extend(itertools.islice(matrices, count))
        return tuple(_joined(share) for share in shares)

    def pieces(
        self, bucket: Bucket, tensors_of: TensorsOf, start: int, stop: int
    ) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """Neighbours of one shape together, so that they are multiplied together."""
        runs: list[tuple[int, int, tuple[int, ...]]] = []
        for tensor, _, _, place in released_slices(bucket, tensors_of, start, stop):
            first = place
            if runs and runs[-1][1:] == (place, (-1, *tensor.shape)):
                first, _, _ = runs.pop()
            runs.append((first, place + tensor.size, (-1, *tensor.shape)))
        return iter(runs)

    def update(self, piece: Piece, learning_rate: float, updates: Tensor) -> None:
        config = self.config
        master_KMN = piece.master.view(piece.shape)
        rows, columns = master_KMN.shape[1:]
        size = learning_rate * config.muon_rms * math.sqrt(max(rows, columns))
        at_once = max(1, _AT_ONCE // (rows * columns))
        tensors = (master_KMN, piece.gradient, piece.state["momentum"])
        parts = (tensor.view(piece.shape).split(at_once) for tensor in tensors)
        for master, gradient, kept in zip(*parts):
            momentum = kept.to(master.dtype)  # itself where it is that wide
            momentum.lerp_(gradient, 1 - config.muon_momentum)
            ahead = gradient.lerp(momentum, config.muon_momentum)
            kept.copy_(momentum)
            direction = orthogonalised(ahead, ITERATIONS[config.newton_schulz])
            master.mul_(1 - learning_rate * config.weight_decay)
            master.add_(direction, alpha=-size)


def is_for_muon(name: str, shape: tuple[int, ...]) -> bool:
    """Whether Muon updates a parameter of the model: as in DeepSeek-V4 all matrices, the router's
    too, but not the embedding, the output head and norms."""
    return len(shape) > 1 and not name.startswith(("embed_tokens.", "lm_head."))


def _joined(ranges: list[tuple[int, int]]) -> Ranges:
    """The same elements, in order, with what touches in one range."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and joined[-1][1] == start:
            start, _ = joined.pop()
        joined.append((start, stop))
    return tuple(joined)

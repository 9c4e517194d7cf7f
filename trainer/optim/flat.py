"""The optimizer: flat buffers of gradients into new weights, on every copy alike or in shares."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.ops.precision import accurate_type
from parallel.reduce.gradients import Gradients
from parallel.reduce.share import Finish, Share
from trainer.optim.home import Home
from trainer.optim.rule import Piece, Rule
from trainer.optim.state import Fragment, TensorsOf, fragments


@dataclass(frozen=True)
class _Part:
    """What this rank updates of a bucket, by which rule."""

    share: Share
    rule: Rule
    pieces: list[Piece]


class FlatOptimizer:
    """Updates what this rank's shares of the gradients say.

    Where every copy updates everything, it does so from gradients that are the same on every copy.
    Where buckets are cut, masters and state exist for this rank's share alone.
    """

    def __init__(
        self,
        gradients: Gradients,
        tensors_of: TensorsOf,
        rules: Mapping[str, Rule],
        clip: float,
        moments: torch.dtype | None = None,
        offload: bool = False,
    ) -> None:
        """rules: by kind of bucket. clip: limit of the gradient norm, 0 for none. moments: type of
        the state that rules keep; that of the master where None. offload: masters and state to the
        host."""
        self._gradients, self._tensors_of, self._clip = gradients, tensors_of, clip
        self._home = home = Home.of(gradients.shares[0].bucket.values.device, offload)
        self._parts = [
            _Part(share, rule, list(_pieces(share, rule, tensors_of, moments, home)))
            for share in gradients.shares
            for rule in [rules[share.bucket.kind]]
        ]
        self._updates = torch.zeros((), dtype=torch.float32, device=home.device)

    @property
    def updates(self) -> int:
        return int(self._updates)

    def zero(self) -> None:
        self._gradients.zero()

    def reduce(self) -> Tensor:
        self._gradients.reduce()
        return self._gradients.square()

    @torch.no_grad()
    def step(self, norm: Tensor, learning_rate: float) -> None:
        self._gradients.clip(norm, self._clip)
        finish = []
        brought = self._home.brought(piece for part in self._parts for piece in part.pieces)
        for part in self._parts:
            for piece in itertools.islice(brought, len(part.pieces)):
                part.rule.update(piece, learning_rate, self._updates)
            finish.append(_publish(part))
        for wait in finish:
            wait()
        self._updates += 1

    def state(self) -> list[Fragment]:
        return [
            fragment
            for part in self._parts
            for piece in part.pieces
            for kind, values in {"master": piece.master, **piece.state}.items()
            for fragment in fragments(
                part.share.bucket,
                self._tensors_of,
                kind,
                piece.start,
                values,
                part.share.counts_here,
            )
        ]

    @torch.no_grad()
    def loaded(self, updates: int) -> None:
        self._updates.fill_(updates)
        for part in self._parts:
            _publish(part)()


def _pieces(
    share: Share, rule: Rule, tensors_of: TensorsOf, moments: torch.dtype | None, home: Home
) -> Iterator[Piece]:
    bucket = share.bucket
    for start, stop in share.ranges:
        for first, last, shape in rule.pieces(bucket, tensors_of, start, stop):
            values = bucket.values[first:last]
            wide = accurate_type(values.dtype)
            state = {kind: home.zeros(values, moments or wide) for kind in rule.kinds}
            master = home.master(values, wide)
            yield Piece(first, shape, values, bucket.gradient[first:last], master, state)


def _publish(part: _Part) -> Finish:
    """Make weights what their masters say, where these are others, and start giving them to the
    other copies; the result waits for that."""
    for piece in part.pieces:
        if piece.master is not piece.values:
            piece.values.copy_(piece.master, non_blocking=True)
    return part.share.gather()

"""The gradients of one rank: flat buffers, summed over the copies, their global norm, clipping."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.ranks.mesh import RankSet
from parallel.reduce.bucket import Bucket, make_buckets
from parallel.reduce.share import Cut, Finish, Share


class Gradients:
    """The gradients of this rank's parameters: flat buffers, one for each set of copies and kind.

    The gradient of each parameter is a view of one, so that accumulating needs no copy and a
    reduction is one collective per buffer. They are float32 or wider, whatever the parameters are.
    """

    def __init__(self, shares: Sequence[Share], held: Iterable[int] = ()) -> None:
        """shares: in the same order on every rank. held: the stages of this rank."""
        self.shares, self._held = list(shares), frozenset(held)
        self._to_come = set(self._held)
        self._started: list[Finish] = []

    def zero(self) -> None:
        self._to_come = set(self._held)
        for share in self.shares:
            share.bucket.gradient.zero_()

    def completed(self, stage: int) -> None:
        """Nothing more is added to the gradients of a stage before `reduce`: what is complete, in
        the order of the shares, starts being summed."""
        self._to_come.discard(stage)
        self._start()

    def _start(self) -> None:
        """Start what waits for no stage. In one order on every rank, so that no two ranks wait for
        each other: a share that is complete still waits for those before it."""
        for share in self.shares[len(self._started) :]:
            if share.bucket.stages & self._to_come:
                return
            self._started.append(share.reduce())

    def not_finite(self) -> list[str]:
        """The parameters of this rank whose gradient has a value that is not finite."""
        return [
            name
            for share in self.shares
            for name, gradient in share.bucket.gradients()
            if not bool(torch.isfinite(gradient).all())
        ]

    def reduce(self) -> None:
        """Sum every gradient over its copies, at least where this rank updates."""
        self._to_come.clear()
        self._start()
        for wait in self._started:
            wait()
        self._started = []

    def take_values_of_first(self) -> None:
        """Give the values of the first copy to the others, where every copy has all of them."""
        for share in self.shares:
            bucket = share.bucket
            if share.cut is None and bucket.group is not None:
                dist.broadcast(bucket.values, src=bucket.ranks[0], group=bucket.group)

    def square(self) -> Tensor:
        """The square of the 2-norm of what this rank counts of the reduced gradients, float64: the
        sum over the world is that of the global norm, in which every parameter counts once."""
        device = self.shares[0].bucket.gradient.device
        square = torch.zeros((), dtype=torch.float64, device=device)
        for share in self.shares:
            if share.counts_here:
                for piece in chain.from_iterable(map(_pieces, share.gradients())):
                    square += torch.linalg.vector_norm(piece, dtype=torch.float64).square()
        return square

    def clip(self, norm: Tensor, limit: float) -> None:
        """Scale all gradients so that their norm is at most `limit`; 0 switches clipping off."""
        if limit > 0 and norm > limit:
            for share in self.shares:
                for gradient in share.gradients():
                    gradient.mul_((limit / norm).to(gradient.dtype))


def make_gradients(
    parameters: Mapping[str, nn.Parameter],
    copies_of: Mapping[str, RankSet],
    groups: Mapping[RankSet, dist.ProcessGroup],
    rank: int,
    kind_of: Callable[[str], str] = lambda name: "",
    cut: Callable[[Bucket], Cut | None] = lambda bucket: None,
    stages_of: Callable[[str], frozenset[int]] = lambda name: frozenset(),
    held: Iterable[int] = (),
    device: torch.device | None = None,
) -> Gradients:
    """copies_of, groups, kind_of, stages_of, device: see make_buckets. cut: who updates what of a
    bucket. held: the stages of this rank."""
    buckets = make_buckets(parameters, copies_of, groups, kind_of, stages_of, device)
    return Gradients([Share(bucket, cut(bucket), rank) for bucket in buckets], held)


def _pieces(gradient: Tensor) -> tuple[Tensor, ...]:
    """The same numbers; on the CPU, where a norm in float64 first makes a copy, in pieces of which
    the copy stays in the cache."""
    return gradient.split(2**16) if gradient.device.type == "cpu" else (gradient,)

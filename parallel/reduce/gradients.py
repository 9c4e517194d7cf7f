"""The gradients of one rank: flat buffers, summed over the copies, their global norm, clipping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.ops.accumulate import set_gradient
from parallel.ops.precision import accurate_type
from parallel.ranks.mesh import RankSet


@dataclass(frozen=True)
class _Bucket:
    """Parameters that have the same copies, with one flat gradient buffer.

    counts_here: this rank is the one that counts them in the norm.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    gradient: Tensor
    group: dist.ProcessGroup | None
    counts_here: bool

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """The gradient of each parameter, flat."""
        return zip(self.names, self.gradient.split(list(self.sizes)))


class Gradients:
    """The gradients of this rank's parameters: flat buffers, one for each set of copies.

    The gradient of each parameter is a view of one, so that accumulating needs no copy and a
    reduction is one collective per set. They are float32 or wider, whatever the parameters are.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        copies_of: Mapping[str, RankSet],
        groups: Mapping[RankSet, dist.ProcessGroup],
        rank: int,
    ) -> None:
        """copies_of: by parameter name; names are the same on every rank that holds a copy."""
        self._buckets: list[_Bucket] = []
        for ranks in sorted(set(copies_of.values())):
            names = tuple(sorted(name for name in parameters if copies_of[name] == ranks))
            by_dtype: dict[torch.dtype, list[str]] = {}
            for name in names:
                by_dtype.setdefault(parameters[name].dtype, []).append(name)
            for members in by_dtype.values():
                flat = _flat_gradients([parameters[name] for name in members])
                group = groups[ranks] if len(ranks) > 1 else None
                sizes = tuple(parameters[name].numel() for name in members)
                self._buckets.append(_Bucket(tuple(members), sizes, flat, group, ranks[0] == rank))

    def zero(self) -> None:
        for bucket in self._buckets:
            bucket.gradient.zero_()

    def not_finite(self) -> list[str]:
        """The parameters of this rank whose gradient has a value that is not finite."""
        return [
            name
            for bucket in self._buckets
            for name, gradient in bucket.gradients()
            if not bool(torch.isfinite(gradient).all())
        ]

    def reduce(self) -> None:
        """Sum every gradient over its copies."""
        works = [
            dist.all_reduce(bucket.gradient, group=bucket.group, async_op=True)
            for bucket in self._buckets
            if bucket.group is not None
        ]
        for work in works:
            work.wait()

    def norm(self) -> Tensor:
        """The global 2-norm of reduced gradients, float64; every parameter counts once."""
        device = self._buckets[0].gradient.device
        square = torch.zeros((), dtype=torch.float64, device=device)
        for bucket in self._buckets:
            if bucket.counts_here:
                square += torch.linalg.vector_norm(bucket.gradient, dtype=torch.float64).square()
        if dist.is_initialized():
            dist.all_reduce(square)
        return square.sqrt()

    def clip(self, norm: Tensor, limit: float) -> None:
        """Scale all gradients so that their norm is at most `limit`; 0 switches clipping off."""
        if limit > 0 and norm > limit:
            for bucket in self._buckets:
                bucket.gradient.mul_((limit / norm).to(bucket.gradient.dtype))


def _flat_gradients(parameters: list[nn.Parameter]) -> Tensor:
    """A zeroed buffer for these parameters' gradients, each a view of it."""
    flat = torch.zeros(
        sum(p.numel() for p in parameters),
        dtype=accurate_type(parameters[0].dtype),
        device=parameters[0].device,
    )
    for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters])):
        set_gradient(parameter, piece.view(parameter.shape))
    return flat

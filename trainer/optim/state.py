"""The state of an optimizer as pieces of released tensors, whatever the layout and the sharding.

A checkpoint saves these pieces and fills those of another layout from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from parallel.reduce.bucket import Bucket


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + len(values)) of one kind of state of the flattened tensor `name` of
    the released checkpoints.

    kind: "master", "exp_avg", "exp_avg_sq", "momentum" or "ema". shape: of the whole tensor.
    values: 1-D, a view of the live state, so that loading copies into it. saves: this rank is the
    one that saves it; where state is replicated, the first copy does.
    """

    name: str
    kind: str
    start: int
    shape: tuple[int, ...]
    values: Tensor
    saves: bool


@dataclass(frozen=True)
class ReleasedTensor:
    """A tensor of the released checkpoints."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


TensorsOf: TypeAlias = Mapping[str, Sequence[ReleasedTensor]]
"""By parameter of a rank, what it is in the released checkpoints: one tensor after the other, in
the order of its elements. The experts of a rank are one parameter and many tensors."""


def released_slices(
    bucket: Bucket, tensors_of: TensorsOf, start: int, stop: int
) -> Iterator[tuple[ReleasedTensor, int, int, int]]:
    """Elements [start, stop) of a bucket's flat buffers as (tensor, first, last + 1, place): those
    of that tensor, and where in the buffers its first one is. The gaps between parameters belong to
    none."""
    for name, place in zip(bucket.names, bucket.starts):
        for tensor in tensors_of[name]:
            first, last = max(start - place, 0), min(stop - place, tensor.size)
            if first < last:
                yield tensor, first, last, place + first
            place += tensor.size


def fragments(
    bucket: Bucket, tensors_of: TensorsOf, kind: str, start: int, values: Tensor, saves: bool
) -> Iterator[Fragment]:
    """State of elements [start, start + len(values)) of a bucket's flat buffers."""
    for tensor, first, last, place in released_slices(
        bucket, tensors_of, start, start + len(values)
    ):
        piece = values[place - start : place - start + last - first]
        yield Fragment(tensor.name, kind, first, tensor.shape, piece, saves)

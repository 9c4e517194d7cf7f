"""The state of an optimizer as pieces of released tensors, whatever the layout and the sharding.

A checkpoint saves these pieces and fills those of another layout from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn


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


@dataclass(frozen=True)
class Weight:
    """A parameter of this rank as an optimizer sees it.

    name: in the part of the model. tensors: what it is in the released checkpoints, one after the
    other in the order of its elements; the experts of a rank are one parameter and many tensors.
    saves: this rank is the first that holds a copy.
    """

    name: str
    parameter: nn.Parameter
    tensors: tuple[ReleasedTensor, ...]
    saves: bool


def released_slices(
    tensors: Sequence[ReleasedTensor], start: int, stop: int
) -> Iterator[tuple[ReleasedTensor, int, int]]:
    """Elements [start, stop) of tensors that lie one after the other, as (tensor, first, last + 1)
    with positions within that tensor."""
    begin = 0
    for tensor in tensors:
        first, last = max(start - begin, 0), min(stop - begin, tensor.size)
        if first < last:
            yield tensor, first, last
        begin += tensor.size


def fragments(
    weight: Weight, kind: str, values: Tensor, start: int = 0, saves: bool | None = None
) -> Iterator[Fragment]:
    """State of elements [start, start + len(values)) of a flattened weight, values 1-D.

    saves: as the weight says when not given.
    """
    saves = weight.saves if saves is None else saves
    done = 0
    for tensor, first, last in released_slices(weight.tensors, start, start + len(values)):
        piece = values[done : done + last - first]
        yield Fragment(tensor.name, kind, first, tensor.shape, piece, saves)
        done += last - first

"""Queries and keys of heads, each a part without position and a part that its position turns: RoPE
(arXiv 2104.09864) on interleaved pairs.

Shapes: T tokens, of sequences of S positions; H heads; N and R the two parts of a head, W both. cos
and sin: [S, R / 2], of the angle of each pair, in the type to compute with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Join(Protocol):
    def __call__(
        self, still_THN: Tensor, turned_THR: Tensor, cos: Tensor, sin: Tensor, backward: bool, /
    ) -> Tensor:
        """[T, H, N + R], with pair i of the last R turned by its position's angle, or back by it.
        turned may be one for all heads, [T, 1, R]. Both may be views, of a stride of 1 at last."""


class SumTurnedBack(Protocol):
    def __call__(self, grad_THR: Tensor, cos: Tensor, sin: Tensor, /) -> Tensor:
        """Sums over heads, turned back, [T, R]."""


@dataclass(frozen=True)
class Rotary:
    """The two kernels of it."""

    join: Join
    sum_turned_back: SumTurnedBack

    def queries(self, query_THW: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Of each, the last R turned."""
        return _Queries.apply(self, query_THW, cos, sin)

    def keys(self, still_THN: Tensor, turned_TR: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[T, H, N + R], from a part of each head and one that all heads share, turned."""
        return _Keys.apply(self, still_THN, turned_TR, cos, sin)


class _Queries(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rotary: Rotary, query_THW: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.rotary = rotary
        return rotary.join(*_parts(query_THW, cos), cos, sin, False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return None, ctx.rotary.join(*_parts(grad, cos), cos, sin, True), None, None


class _Keys(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rotary, still_THN, turned_TR, cos, sin):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(cos, sin)
        ctx.rotary = rotary
        return rotary.join(still_THN, turned_TR.unsqueeze(1), cos, sin, False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        still_THN, turned_THR = _parts(grad, cos)
        return None, still_THN, ctx.rotary.sum_turned_back(turned_THR, cos, sin), None, None


def _parts(x_THW: Tensor, cos: Tensor) -> tuple[Tensor, Tensor]:
    turned = 2 * cos.shape[1]
    still_THN, turned_THR = x_THW.split([x_THW.shape[-1] - turned, turned], -1)
    return still_THN, turned_THR


def _join(
    still_THN: Tensor, turned_THR: Tensor, cos: Tensor, sin: Tensor, backward: bool
) -> Tensor:
    tokens, heads, still = still_THN.shape
    out = still_THN.new_empty(tokens, heads, still + turned_THR.shape[-1])
    out[..., :still] = still_THN
    out[..., still:] = _turned(turned_THR, cos, -sin if backward else sin)
    return out


def _sum_turned_back(grad_THR: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    summed_T1R = grad_THR.sum(1, keepdim=True)
    return _turned(summed_T1R, cos, -sin).squeeze(1).to(grad_THR.dtype)


def _turned(x_THR: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """In the type of cos: pairs as complex numbers, one multiplication in place of copies."""
    pairs = x_THR.to(cos.dtype).unflatten(-1, (-1, 2)).contiguous()
    by_position = torch.view_as_complex(pairs).unflatten(0, (-1, len(cos)))
    turned = by_position * torch.complex(cos, sin).unsqueeze(1)
    return torch.view_as_real(turned).flatten(-2).flatten(0, 1)


ROTARY = Rotary(_join, _sum_turned_back)

"""Heads from a part without position and a part turned by its position (RoPE on interleaved pairs),
in one pass: no copy of either part before they are joined.

Shapes: T tokens, of sequences of S positions; H heads; N and R the two parts of a head.
"""

from __future__ import annotations

from torch import Tensor

from parallel.ops.rotary import Rotary
from parallel.ops.triton.compiler import ceil_div, jit, launch, next_power_of_2, tl

_HEADS = 16  # of a program


def join_rotated(
    still_THN: Tensor, turned_THR: Tensor, cos_SP: Tensor, sin_SP: Tensor, backward: bool
) -> Tensor:
    """[T, H, N + R] with pair i of the last R turned by its position's angle, or back by it.

    Both parts may be views with any distance from token to token and head to head, and turned may
    be one for all heads, [T, 1, R]. cos, sin: float32, [S, R / 2], contiguous.
    """
    tokens, heads, still = still_THN.shape
    turned = turned_THR.shape[-1]
    turned_THR = turned_THR.expand(-1, heads, -1)
    out = still_THN.new_empty(tokens, heads, still + turned)
    launch(
        _join_rotated, (tokens, ceil_div(heads, _HEADS)),
        still_THN, turned_THR, cos_SP, sin_SP, out, len(cos_SP), heads, *still_THN.stride()[:2],
        *turned_THR.stride()[:2], still, turned // 2, backward, _HEADS,
        next_power_of_2(max(still, 1)), next_power_of_2(turned // 2),
    )  # fmt: skip
    return out


def sum_turned_back(grad_THR: Tensor, cos_SP: Tensor, sin_SP: Tensor) -> Tensor:
    """[T, R]: of a key that all heads share, its gradient from those of the heads, which are summed
    in float32. grad may be a view, as above."""
    tokens, heads, turned = grad_THR.shape
    out = grad_THR.new_empty(tokens, turned)
    launch(
        _sum_turned_back, (tokens,),
        grad_THR, cos_SP, sin_SP, out, len(cos_SP), heads, *grad_THR.stride()[:2], turned // 2,
        next_power_of_2(heads), next_power_of_2(turned // 2),
    )  # fmt: skip
    return out


@jit
def _join_rotated(
    still_THN, turned_THR, cos_SP, sin_SP, out, positions, heads, still_token, still_head,
    turned_token, turned_head, STILL: tl.constexpr, PAIRS: tl.constexpr, BACKWARD: tl.constexpr,
    HEADS: tl.constexpr, STILL_POWER: tl.constexpr, PAIRS_POWER: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head_H = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    into_H = out + (token * heads + head_H) * (STILL + 2 * PAIRS)
    place_N, pair_P = tl.arange(0, STILL_POWER), tl.arange(0, PAIRS_POWER)
    inside_HN = (head_H < heads)[:, None] & (place_N < STILL)[None, :]
    source = still_THN + token * still_token + head_H[:, None] * still_head + place_N[None, :]
    tl.store(into_H[:, None] + place_N[None, :], tl.load(source, mask=inside_HN), mask=inside_HN)
    inside_HP = (head_H < heads)[:, None] & (pair_P < PAIRS)[None, :]
    angle_P = token % positions * PAIRS + pair_P
    cos_P = tl.load(cos_SP + angle_P, mask=pair_P < PAIRS)
    sin_P = tl.load(sin_SP + angle_P, mask=pair_P < PAIRS)
    if BACKWARD:
        sin_P = -sin_P
    pair = turned_THR + token * turned_token + head_H[:, None] * turned_head + 2 * pair_P[None, :]
    first_HP = tl.load(pair, mask=inside_HP).to(tl.float32)
    second_HP = tl.load(pair + 1, mask=inside_HP).to(tl.float32)
    turned = into_H[:, None] + STILL + 2 * pair_P[None, :]
    narrow = out.dtype.element_ty
    tl.store(turned, (first_HP * cos_P - second_HP * sin_P).to(narrow), mask=inside_HP)
    tl.store(turned + 1, (first_HP * sin_P + second_HP * cos_P).to(narrow), mask=inside_HP)


@jit
def _sum_turned_back(
    grad_THR, cos_SP, sin_SP, out, positions, heads, grad_token, grad_head,
    PAIRS: tl.constexpr, HEADS: tl.constexpr, PAIRS_POWER: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head_H, pair_P = tl.arange(0, HEADS), tl.arange(0, PAIRS_POWER)
    inside_HP = (head_H < heads)[:, None] & (pair_P < PAIRS)[None, :]
    pair = grad_THR + token * grad_token + head_H[:, None] * grad_head + 2 * pair_P[None, :]
    first_P = tl.sum(tl.load(pair, mask=inside_HP, other=0.0).to(tl.float32), 0)
    second_P = tl.sum(tl.load(pair + 1, mask=inside_HP, other=0.0).to(tl.float32), 0)
    angle_P = token % positions * PAIRS + pair_P
    cos_P = tl.load(cos_SP + angle_P, mask=pair_P < PAIRS)
    sin_P = tl.load(sin_SP + angle_P, mask=pair_P < PAIRS)
    into = out + token * 2 * PAIRS + 2 * pair_P
    narrow = out.dtype.element_ty
    tl.store(into, (first_P * cos_P + second_P * sin_P).to(narrow), mask=pair_P < PAIRS)
    tl.store(into + 1, (second_P * cos_P - first_P * sin_P).to(narrow), mask=pair_P < PAIRS)


ROTARY = Rotary(join_rotated, sum_turned_back)

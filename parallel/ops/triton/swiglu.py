"""SwiGLU x routing weight in one pass each way: to bfloat16, or straight to fp8 in tiles of 1 x
128, which is what the next product reads; and its gradient, from an input in either.

Shapes: P rows, I inner width; gate and up side by side, [P, 2I].
"""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.ops.fp8.tiles import CODE, TILE, Tiled
from parallel.ops.triton.compiler import ceil_div, jit, launch, tl
from parallel.ops.triton.quantise import quantised

_ROWS = 16


def weighted_swiglu(gate_up_P2I: Tensor, weight_P: Tensor) -> Tensor:
    """silu(gate) x up x weight, [P, I], rounded once to the type of gate_up (contiguous)."""
    rows, inner = len(gate_up_P2I), gate_up_P2I.shape[1] // 2
    act_PI = gate_up_P2I.new_empty(rows, inner)
    grid = (ceil_div(rows, _ROWS), ceil_div(inner, TILE))
    launch(
        _forward, grid, gate_up_P2I, gate_up_P2I, weight_P, act_PI, act_PI, rows, inner, False,
        False, False, _ROWS, TILE,
    )  # fmt: skip
    return act_PI


def weighted_swiglu_in_fp8(
    gate_up: Tensor | Tiled, weight_P: Tensor, power_of_two: bool = False
) -> Tiled:
    """The same in tiles of 1 x 128, from float32: not rounded to bfloat16 before. gate_up: as
    weighted_swiglu_backward takes it."""
    source, source_scales = _parts(gate_up)
    rows, inner = len(source), source.shape[1] // 2
    codes = torch.empty(rows, inner, dtype=CODE, device=source.device)
    scales = torch.empty(rows, ceil_div(inner, TILE), device=source.device)
    launch(
        _forward, (ceil_div(rows, _ROWS), scales.shape[1]), source, source_scales, weight_P, codes,
        scales, rows, inner, isinstance(gate_up, Tiled), True, power_of_two, _ROWS, TILE,
    )  # fmt: skip
    return Tiled.along_rows(codes, scales)


def weighted_swiglu_backward(
    grad_PI: Tensor, gate_up: Tensor | Tiled, weight_P: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of gate_up [P, 2I], in the type of grad, and of the weight, [P] in its own.

    gate_up: as the forward read it, or as fp8 keeps it, in tiles of 1 x 128; I a multiple of 128
    then. All contiguous.
    """
    source, scales = _parts(gate_up)
    rows, inner = grad_PI.shape
    grad_P2I = grad_PI.new_empty(rows, 2 * inner)
    weight_grad_P = torch.empty_like(weight_P)
    launch(
        _backward, (ceil_div(rows, _ROWS),),
        grad_PI, source, scales, weight_P, grad_P2I, weight_grad_P, rows, inner,
        isinstance(gate_up, Tiled), _ROWS, TILE,
    )  # fmt: skip
    return grad_P2I, weight_grad_P


def _parts(gate_up: Tensor | Tiled) -> tuple[Tensor, Tensor]:
    """What it is, or codes and scales."""
    return (gate_up.codes, gate_up.scales) if isinstance(gate_up, Tiled) else (gate_up, gate_up)


@jit
def _forward(
    gate_up_P2I, source_scales, weight_P, out_PI, scales, rows, inner, FROM_CODES: tl.constexpr,
    IN_FP8: tl.constexpr, POWER_OF_TWO: tl.constexpr, ROWS: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    row_R = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column_T = tl.program_id(1) * T + tl.arange(0, T)
    inside_RT = (row_R < rows)[:, None] & (column_T < inner)[None, :]
    source = gate_up_P2I + row_R[:, None] * 2 * inner + column_T[None, :]
    gate_RT = tl.load(source, mask=inside_RT, other=0.0).to(tl.float32)
    up_RT = tl.load(source + inner, mask=inside_RT, other=0.0).to(tl.float32)
    if FROM_CODES:
        of_row = source_scales + row_R * (2 * inner // T) + tl.program_id(1)
        gate_RT *= tl.load(of_row, mask=row_R < rows, other=0.0)[:, None]
        up_RT *= tl.load(of_row + inner // T, mask=row_R < rows, other=0.0)[:, None]
    weight_R = tl.load(weight_P + row_R, mask=row_R < rows, other=0.0).to(tl.float32)
    act_RT = gate_RT * tl.sigmoid(gate_RT) * up_RT * weight_R[:, None]
    into = out_PI + row_R[:, None] * inner + column_T[None, :]
    if IN_FP8:
        codes_RT, scale_R = quantised(act_RT, POWER_OF_TWO)
        tl.store(into, codes_RT, mask=inside_RT)
        place = scales + row_R * tl.num_programs(1) + tl.program_id(1)
        tl.store(place, scale_R, mask=row_R < rows)
    else:
        tl.store(into, act_RT.to(out_PI.dtype.element_ty), mask=inside_RT)


@jit
def _backward(
    grad_PI, gate_up_P2I, scales, weight_P, grad_P2I, weight_grad_P, rows, inner,
    FROM_CODES: tl.constexpr, ROWS: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    row_R = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row_R = row_R < rows
    weight_R = tl.load(weight_P + row_R, mask=is_row_R, other=0.0).to(tl.float32)
    sum_R = tl.zeros((ROWS,), tl.float32)
    for tile in range(0, tl.cdiv(inner, T)):
        column_T = tile * T + tl.arange(0, T)
        inside_RT = is_row_R[:, None] & (column_T < inner)[None, :]
        place_RT = row_R[:, None] * 2 * inner + column_T[None, :]
        gate_RT = tl.load(gate_up_P2I + place_RT, mask=inside_RT, other=0.0).to(tl.float32)
        up_RT = tl.load(gate_up_P2I + place_RT + inner, mask=inside_RT, other=0.0).to(tl.float32)
        if FROM_CODES:
            of_row = scales + row_R * (2 * inner // T) + tile
            gate_RT *= tl.load(of_row, mask=is_row_R, other=0.0)[:, None]
            up_RT *= tl.load(of_row + inner // T, mask=is_row_R, other=0.0)[:, None]
        grad_RT = tl.load(
            grad_PI + row_R[:, None] * inner + column_T[None, :], mask=inside_RT, other=0.0
        ).to(tl.float32)
        sigmoid_RT = tl.sigmoid(gate_RT)
        silu_RT = gate_RT * sigmoid_RT
        sum_R += tl.sum(grad_RT * silu_RT * up_RT, 1)
        weighted_RT = grad_RT * weight_R[:, None]
        slope_RT = sigmoid_RT + silu_RT * (1.0 - sigmoid_RT)
        narrow = grad_P2I.dtype.element_ty
        tl.store(grad_P2I + place_RT, (weighted_RT * up_RT * slope_RT).to(narrow), mask=inside_RT)
        tl.store(grad_P2I + place_RT + inner, (weighted_RT * silu_RT).to(narrow), mask=inside_RT)
    tl.store(weight_grad_P + row_R, sum_R.to(weight_grad_P.dtype.element_ty), mask=is_row_R)

"""Products of fp8 codes with a scale per tile, of the rows of groups, each group with a matrix.

What tensor cores add up of 128 products is scaled and added in float32, so that their registers of
few bits hold no longer sum (DeepSeek-V3, arXiv 2412.19437, section 3.3.2). A product that has one
matrix is that of one group.

Shapes: R rows, K what is summed over, O outputs, I inputs, G groups, N tiles of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from parallel.ops.fp8.tiles import TILE, Tiled
from parallel.ops.triton.compiler import ceil_div, jit, launch, next_power_of_2, tl
from parallel.ops.triton.quantise import Columns
from parallel.ops.triton.row_tiles import RowTiles, group_of_tile, rows_of_tile

_WARPS, _STAGES = 8, 3  # for blocks of 128 x 128 outputs; not tuned on a GPU


ScaledProduct: TypeAlias = Callable[[Tiled, Tensor, Tensor, RowTiles, torch.dtype], Tensor]
"""Of the arguments of `scaled_product`, what that gives."""


def scaled_product(
    x: Tiled, codes_GOK: Tensor, scales: Tensor, tiles: RowTiles, dtype: torch.dtype
) -> Tensor:
    """Rows [R, K] x the matrix of their group, transposed -> [R, O] of type `dtype`.

    x: in tiles along rows. codes_GOK: matrices in blocks of 128 x 128. scales: of the blocks, [G,
    ceil(O / 128), ceil(K / 128)]. Of codes, those along K are beside each other; scales are
    contiguous.
    """
    rows, width = x.codes.shape
    outputs = codes_GOK.shape[1]
    y_RO = torch.empty(rows, outputs, dtype=dtype, device=x.codes.device)
    launch(
        _scaled_product, (tiles.count, ceil_div(outputs, TILE)),
        x.codes, x.scales, codes_GOK, scales, y_RO, tiles.ends_G, tiles.first_G1, width,
        outputs, x.codes.stride(0), codes_GOK.stride(0), codes_GOK.stride(1), TILE,
        tiles.groups, next_power_of_2(tiles.groups), num_warps=_WARPS,
        num_stages=_STAGES,
    )  # fmt: skip
    return y_RO


def add_scaled_product(into_GOI: Tensor, grad: Columns, x: Columns) -> None:
    """into += of each group, grad [rows, O] transposed @ x [rows, I]; both in tiles along columns
    of the same rows. into: float32, contiguous. A group without rows is neither read nor written.
    """
    groups, outputs, inputs = into_GOI.shape
    grid = (ceil_div(outputs, TILE), ceil_div(inputs, TILE), groups)
    launch(
        _add_scaled_product, grid,
        into_GOI, grad.codes, grad.scales, x.codes, x.scales, x.tiles.first_G1, outputs, inputs,
        TILE, num_warps=_WARPS, num_stages=_STAGES,
    )  # fmt: skip


@jit
def _scaled_product(
    x_RK, x_scales, codes_GOK, scales, y_RO, ends_G, first_G1, width, outputs,
    x_stride, matrix_stride, row_stride, T: tl.constexpr, GROUPS: tl.constexpr, POWER: tl.constexpr,
):  # fmt: skip
    tile, block = tl.program_id(0), tl.program_id(1)
    group = group_of_tile(first_G1, tile, GROUPS, POWER)
    if group < GROUPS:
        row_T, end = rows_of_tile(ends_G, first_G1, tile, group, T)
        row_T = row_T.to(tl.int64)
        output_T = block * T + tl.arange(0, T)
        summed_T = tl.arange(0, T)
        matrix = codes_GOK + group.to(tl.int64) * matrix_stride
        steps = tl.cdiv(width, T)
        of_block = scales + (group * tl.cdiv(outputs, T) + block) * steps
        sum_TT = tl.zeros((T, T), tl.float32)
        for step in range(0, steps):
            k_T = step * T + summed_T
            x_TT = tl.load(
                x_RK + row_T[:, None] * x_stride + k_T[None, :],
                mask=(row_T < end)[:, None] & (k_T < width)[None, :],
                other=0.0,
            )
            w_TT = tl.load(
                matrix + output_T[None, :] * row_stride + k_T[:, None],
                mask=(output_T < outputs)[None, :] & (k_T < width)[:, None],
                other=0.0,
            )
            scale_T = tl.load(x_scales + row_T * steps + step, mask=row_T < end, other=0.0)
            sum_TT += tl.dot(x_TT, w_TT) * (scale_T * tl.load(of_block + step))[:, None]
        into = y_RO + row_T[:, None] * outputs + output_T[None, :]
        inside_TT = (row_T < end)[:, None] & (output_T < outputs)[None, :]
        tl.store(into, sum_TT.to(y_RO.dtype.element_ty), mask=inside_TT)


@jit
def _add_scaled_product(
    into_GOI, grad, grad_scales_NO, x, x_scales_NI, first_G1, outputs, inputs, T: tl.constexpr
):
    group = tl.program_id(2)
    first, last = tl.load(first_G1 + group), tl.load(first_G1 + group + 1)
    if first < last:
        output_T = tl.program_id(0) * T + tl.arange(0, T)
        input_T = tl.program_id(1) * T + tl.arange(0, T)
        length = (last - first) * T
        start = first.to(tl.int64) * T
        summed_T = tl.arange(0, T)
        grad_rows = grad + start * outputs + output_T[:, None].to(tl.int64) * length
        x_rows = x + start * inputs + input_T[None, :].to(tl.int64) * length
        sum_TT = tl.zeros((T, T), tl.float32)
        for tile in range(first, last):
            place_T = (tile - first) * T + summed_T
            grad_TT = tl.load(
                grad_rows + place_T[None, :], mask=(output_T < outputs)[:, None], other=0.0
            )
            x_TT = tl.load(x_rows + place_T[:, None], mask=(input_T < inputs)[None, :], other=0.0)
            grad_scale_T = tl.load(
                grad_scales_NO + tile * outputs + output_T, mask=output_T < outputs, other=0.0
            )
            x_scale_T = tl.load(
                x_scales_NI + tile * inputs + input_T, mask=input_T < inputs, other=0.0
            )
            sum_TT += tl.dot(grad_TT, x_TT) * grad_scale_T[:, None] * x_scale_T[None, :]
        into = into_GOI + group.to(tl.int64) * outputs * inputs
        into += output_T[:, None].to(tl.int64) * inputs + input_T[None, :]
        inside_TT = (output_T < outputs)[:, None] & (input_T < inputs)[None, :]
        tl.store(into, tl.load(into, mask=inside_TT) + sum_TT, mask=inside_TT)

"""Numbers to fp8 with a scale per tile, as parallel/ops/fp8/tiles.py does it, in one pass.

Tiles along rows are 1 x 128. Tiles along columns are 128 x 1, for products that sum over rows: the
codes of these are written transposed, since tensor cores read fp8 operands along what is summed
over, and each group's rows are filled up with zeros to a multiple of 128.

Shapes: R rows, C columns, N tiles of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.ops.fp8.tiles import CODE, TILE, Tiled
from parallel.ops.triton.compiler import jit, launch, next_power_of_2, tl
from parallel.ops.triton.row_tiles import RowTiles, group_of_tile, rows_of_tile

_ROWS = 16  # of a program that makes tiles along rows
_COLUMNS = 64  # of one that makes tiles along columns; divides 128


@dataclass(frozen=True)
class Columns:
    """Tiles along columns, transposed.

    codes: fp8, flat; of a group whose first tile is the n-th, [C, rows filled up] from n x 128 x C.
    scales: float32, [N, C]. tiles: which rows are in which tile.
    """

    codes: Tensor
    scales: Tensor
    tiles: RowTiles


def quantise_rows(x_RC: Tensor, power_of_two: bool = False) -> Tiled:
    """x [R, C], bfloat16 or float32 with columns beside each other, in tiles of 1 x 128."""
    rows, columns = x_RC.shape
    codes = torch.empty(rows, columns, dtype=CODE, device=x_RC.device)
    scales = x_RC.new_empty(rows, -(-columns // TILE), dtype=torch.float32)
    grid = (-(-rows // _ROWS), scales.shape[1])
    launch(
        _quantise_rows,
        grid,
        x_RC,
        codes,
        scales,
        rows,
        columns,
        x_RC.stride(0),
        power_of_two,
        _ROWS,
        TILE,
    )
    return Tiled(codes, scales, (1, TILE))


def quantise_columns(x: Tensor | Tiled, tiles: RowTiles, power_of_two: bool = False) -> Columns:
    """x [R, C], or what it is in tiles along rows, in tiles of 128 x 1."""
    source = x.codes if isinstance(x, Tiled) else x
    row_scales = x.scales if isinstance(x, Tiled) else source
    columns = source.shape[1]
    codes = torch.empty(tiles.count * TILE * columns, dtype=CODE, device=source.device)
    scales = torch.empty(tiles.count, columns, dtype=torch.float32, device=source.device)
    launch(
        _quantise_columns, (tiles.count, -(-columns // _COLUMNS)),
        source, row_scales, codes, scales, tiles.ends_G, tiles.first_G1, columns,
        source.stride(0), isinstance(x, Tiled), power_of_two, _COLUMNS, TILE,
        tiles.groups, next_power_of_2(tiles.groups),
    )  # fmt: skip
    return Columns(codes, scales, tiles)


@jit
def scale_of(amax, POWER_OF_TWO: tl.constexpr):
    """Of a tile whose largest magnitude is amax."""
    scale = tl.div_rn(tl.maximum(amax, 1e-4), 448.0)
    if POWER_OF_TWO:
        # A mantissa that is not zero carries into the exponent, and is cut off.
        bits = scale.to(tl.int32, bitcast=True) + 0x7FFFFF
        scale = ((bits >> 23) << 23).to(tl.float32, bitcast=True)
    return scale


@jit
def quantised(values_RT, POWER_OF_TWO: tl.constexpr):
    """(codes, scales) of rows, each a tile."""
    scale_R = scale_of(tl.max(tl.abs(values_RT), 1), POWER_OF_TWO)
    return tl.div_rn(values_RT, scale_R[:, None]).to(tl.float8e4nv), scale_R


@jit
def _quantise_rows(
    x_RC, codes_RC, scales_RN, rows, columns, stride,
    POWER_OF_TWO: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row_R = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column_T = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside_RT = (row_R < rows)[:, None] & (column_T < columns)[None, :]
    source = x_RC + row_R[:, None] * stride + column_T[None, :]
    codes_RT, scale_R = quantised(
        tl.load(source, mask=inside_RT, other=0.0).to(tl.float32), POWER_OF_TWO
    )
    tl.store(codes_RC + row_R[:, None] * columns + column_T[None, :], codes_RT, mask=inside_RT)
    scales = scales_RN + row_R * tl.num_programs(1) + tl.program_id(1)
    tl.store(scales, scale_R, mask=row_R < rows)


@jit
def _quantise_columns(
    x_RC, row_scales, codes, scales_NC, ends_G, first_G1, columns, stride,
    FROM_CODES: tl.constexpr, POWER_OF_TWO: tl.constexpr, COLUMNS: tl.constexpr,
    TILE_ROWS: tl.constexpr, GROUPS: tl.constexpr, POWER: tl.constexpr,
):  # fmt: skip
    tile, block = tl.program_id(0), tl.program_id(1)
    group = group_of_tile(first_G1, tile, GROUPS, POWER)
    if group < GROUPS:
        row_T, end = rows_of_tile(ends_G, first_G1, tile, group, TILE_ROWS)
        row_T = row_T.to(tl.int64)
        column_C = block * COLUMNS + tl.arange(0, COLUMNS)
        inside_TC = (row_T < end)[:, None] & (column_C < columns)[None, :]
        source = x_RC + row_T[:, None] * stride + column_C[None, :]
        values_TC = tl.load(source, mask=inside_TC, other=0.0).to(tl.float32)
        if FROM_CODES:
            across = tl.cdiv(columns, TILE_ROWS)
            of_row = row_scales + row_T * across + block * COLUMNS // TILE_ROWS
            values_TC *= tl.load(of_row, mask=row_T < end, other=0.0)[:, None]
        codes_CT, scale_C = quantised(tl.trans(values_TC), POWER_OF_TWO)
        first = tl.load(first_G1 + group)
        length = (tl.load(first_G1 + group + 1) - first) * TILE_ROWS
        place_T = (tile - first) * TILE_ROWS + tl.arange(0, TILE_ROWS)
        start = first.to(tl.int64) * TILE_ROWS * columns
        into = codes + start + column_C[:, None].to(tl.int64) * length + place_T[None, :]
        tl.store(into, codes_CT, mask=(column_C < columns)[:, None] & (place_T >= 0)[None, :])
        scales = scales_NC + tile.to(tl.int64) * columns + column_C
        tl.store(scales, scale_C, mask=column_C < columns)

"""Products in fp8 by others, behind the signature of `scaled_product`: torch's block-scaled product
for one matrix, DeepGEMM's for those of experts. Written from their sources; neither has run.

Both are for Hopper, with float32 scales; shapes that they do not take go to ours.

Shapes: P rows, K numbers that a product sums over, O outputs, G groups, F rows filled up, so that
each group begins at a multiple of 128.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import ScalingType

from parallel.ops.fp8.tiles import TILE, Tiled
from parallel.ops.triton.compiler import ceil_div
from parallel.ops.triton.row_tiles import RowTiles
from parallel.ops.triton.scaled_products import ScaledProduct, scaled_product


def by_torch(scaled_mm: Callable[..., Tensor]) -> ScaledProduct:
    """scaled_mm: torch.nn.functional.scaled_mm, 1 x 128 by 128 x 128 (cuBLASLt)."""

    def product(
        x: Tiled, codes_GOK: Tensor, scales: Tensor, tiles: RowTiles, dtype: torch.dtype
    ) -> Tensor:
        (rows, width), outputs = x.codes.shape, codes_GOK.shape[1]
        if len(codes_GOK) > 1 or rows == 0 or width % 16 or outputs % 16:
            return scaled_product(x, codes_GOK, scales, tiles, dtype)
        steps = scales.shape[2]
        filled = scales.new_zeros(scales.shape[1], 4 * ceil_div(steps, 4))
        filled[:, :steps] = scales[0]
        return scaled_mm(
            x.codes,
            codes_GOK[0].t(),
            x.scales.t().contiguous().t(),
            ScalingType.BlockWise1x128,
            filled.t(),
            ScalingType.BlockWise128x128,
            output_dtype=dtype,
        )

    return product


def by_deep_gemm(deep_gemm: Any) -> ScaledProduct:
    """deep_gemm: the package, of which m_grouped_fp8_gemm_nt_contiguous is called."""

    def product(
        x: Tiled, codes_GOK: Tensor, scales: Tensor, tiles: RowTiles, dtype: torch.dtype
    ) -> Tensor:
        rows, width = x.codes.shape
        outputs = codes_GOK.shape[1]
        if dtype != torch.bfloat16 or rows == 0 or width % TILE or outputs % TILE:
            return scaled_product(x, codes_GOK, scales, tiles, dtype)
        row_F, group_F, place_P = filled_up(tiles, rows)
        y_FO = torch.empty(len(row_F), outputs, dtype=dtype, device=x.codes.device)
        filled = x.codes.index_select(0, row_F), x.scales.index_select(0, row_F)
        deep_gemm.m_grouped_fp8_gemm_nt_contiguous(
            filled, (codes_GOK, scales), y_FO, group_F, disable_ue8m0_cast=True
        )
        return y_FO.index_select(0, place_P)

    return product


def filled_up(tiles: RowTiles, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of groups with each group filled up to whole tiles: (of each filled row, a row to read,
    its group (int32), -1 for filling, [F] both; and the place of each row among them, [P]). The
    host waits for nothing."""
    ends_G, first_G1 = tiles.ends_G.long(), tiles.first_G1.long()
    start_G = ends_G - ends_G.diff(prepend=ends_G.new_zeros(1))
    place_F = torch.arange(tiles.count * TILE, device=ends_G.device)
    group_F = torch.searchsorted(first_G1[1:], place_F // TILE, right=True)
    inside_F = group_F.clamp(max=tiles.groups - 1)
    row_F = start_G[inside_F] + place_F - first_G1[inside_F] * TILE
    filling_F = (group_F == tiles.groups) | (row_F >= ends_G[inside_F])
    row_P = torch.arange(rows, device=ends_G.device)
    group_P = torch.searchsorted(ends_G, row_P, right=True)
    place_P = first_G1[group_P] * TILE + row_P - start_G[group_P]
    return (
        row_F.masked_fill(filling_F, 0),
        group_F.masked_fill(filling_F, -1).int(),
        place_P,
    )

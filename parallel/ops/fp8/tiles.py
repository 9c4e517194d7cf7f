"""Numbers in fp8 with a scale for each tile (DeepSeek-V3, arXiv 2412.19437, section 3.3.2).

E4M3 everywhere. Activations and their gradients have tiles of 1 x 128: a row, 128 of the numbers
that a product sums over. For the weight gradient, which sums over rows, tiles are 128 x 1. Weights
have blocks of 128 x 128, which serve both the forward and the input gradient. The scale is the
largest magnitude of the tile over 448, from the numbers themselves, not from earlier steps; where
codes travel or stay it is rounded up to a power of two, so that scaling adds no rounding of its
own. Tiles at the ends are smaller where 128 does not divide.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

TILE = 128
CODE = torch.float8_e4m3fn
LARGEST = torch.finfo(CODE).max  # 448
SMALLEST_AMAX = 1e-4
"""Smaller maxima count as this, so that zeros have a scale (DeepGEMM's casts do the same)."""


@dataclass(frozen=True)
class Tiled:
    """codes: fp8, [R, C]. scales: float32; [R, ceil(C / 128)] of tiles along rows, [ceil(R / 128),
    C] of tiles along columns, or [ceil(R / 128), ceil(C / 128)] of blocks. tile: its two lengths.
    """

    codes: Tensor
    scales: Tensor
    tile: tuple[int, int]

    @classmethod
    def along_rows(cls, codes: Tensor, scales: Tensor) -> Tiled:
        return cls(codes, scales, (1, TILE))

    def values(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """codes x scales, computed in float32, [R, C]."""
        rows, columns = self.codes.shape
        tiles = _as_tiles(_decoded(self.codes), self.tile)
        values = tiles.mul_(self.scales[:, None, :, None]).flatten(2).flatten(0, 1)
        return values[:rows, :columns].to(dtype)


def tiles_along_rows(x_RC: Tensor, power_of_two: bool = False) -> Tiled:
    """Tiles of 1 x 128, of any float type."""
    return _tiled(x_RC, (1, TILE), power_of_two)


def tiles_along_columns(x_RC: Tensor, power_of_two: bool = False) -> Tiled:
    """Tiles of 128 x 1."""
    return _tiled(x_RC, (TILE, 1), power_of_two)


def blocks(x_RC: Tensor) -> Tiled:
    """Blocks of 128 x 128."""
    return _tiled(x_RC, (TILE, TILE), power_of_two=False)


def _tiled(x_RC: Tensor, tile: tuple[int, int], power_of_two: bool) -> Tiled:
    rows, columns = x_RC.shape
    tiles = _as_tiles(x_RC.float(), tile)
    amax = tiles.abs().amax((1, 3)).clamp_(min=SMALLEST_AMAX)
    scales = amax / LARGEST
    if power_of_two:
        scales = _next_power_of_two(scales)
    codes = (tiles / scales[:, None, :, None]).to(CODE)
    return Tiled(codes.flatten(2).flatten(0, 1)[:rows, :columns], scales, tile)


def _as_tiles(x_RC: Tensor, tile: tuple[int, int]) -> Tensor:
    """[tiles down, rows of a tile, tiles across, columns of a tile], zeros at the ends."""
    down, across = tile
    rows, columns = x_RC.shape
    if rows % down or columns % across:
        x_RC = pad(x_RC, (0, -columns % across, 0, -rows % down))
    return x_RC.unflatten(1, (-1, across)).unflatten(0, (-1, down))


def _decoded(codes: Tensor) -> Tensor:
    """float32. On a CPU a table is six times as fast as torch's conversion."""
    if codes.device.type != "cpu":
        return codes.float()
    every_code = torch.arange(256, dtype=torch.uint8).view(CODE).float()
    index = codes.contiguous().view(torch.uint8).flatten().int()
    return every_code.index_select(0, index).view(codes.shape)


def _next_power_of_two(x: Tensor) -> Tensor:
    """The smallest power of two that is not below each positive number."""
    mantissa, exponent = torch.frexp(x)  # x = mantissa x 2^exponent, 0.5 <= mantissa < 1
    return torch.ldexp(torch.ones_like(x), exponent - (mantissa == 0.5).int())

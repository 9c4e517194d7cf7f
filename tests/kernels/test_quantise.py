"""Quantising in Triton gives the codes and scales of parallel/ops/fp8/tiles.py, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from parallel.ops.fp8.tiles import TILE, Tiled, tiles_along_columns, tiles_along_rows
from parallel.ops.triton.quantise import Columns, quantise_columns, quantise_rows
from parallel.ops.triton.row_tiles import RowTiles
from tests.kernels.ragged import ROWS, SIZES, groups

pytestmark = pytest.mark.gpu


def numbers(rows: int, columns: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, columns, generator=generator) * torch.logspace(-6, 6, columns)
    return x.bfloat16().to(device)


def same(found: Tiled, wanted: Tiled) -> None:
    assert torch.equal(found.scales, wanted.scales)
    assert torch.equal(found.codes.view(torch.uint8), wanted.codes.view(torch.uint8))


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("shape", [(5, 100), (33, 256)])
def test_along_rows(shape: tuple[int, int], power_of_two: bool, device: torch.device) -> None:
    x = numbers(*shape, device)
    same(quantise_rows(x, power_of_two), tiles_along_rows(x, power_of_two))
    part = x[:, 16:80]
    same(quantise_rows(part, power_of_two), tiles_along_rows(part, power_of_two))


@pytest.mark.parametrize("from_codes", [False, True])
@pytest.mark.parametrize("on_host", [False, True])
def test_along_columns_of_each_group(on_host: bool, from_codes: bool, device: torch.device) -> None:
    x = numbers(ROWS, 200, device)
    tiles = RowTiles.of(groups(device, on_host))
    source = tiles_along_rows(x) if from_codes else x
    found, start, first = quantise_columns(source, tiles), 0, 0
    values = source.values() if isinstance(source, Tiled) else source
    for size in SIZES:
        wanted = tiles_along_columns(values[start : start + size]) if size else None
        if wanted is not None:
            same(group_of(found, first, size), wanted)
            first += len(wanted.scales)
        start += size
    assert int(tiles.first_G1[-1]) == first <= tiles.count


def group_of(columns: Columns, first: int, size: int) -> Tiled:
    """A group's tiles as tiles_along_columns has them."""
    count, width = -(-size // TILE), columns.scales.shape[1]
    part = columns.codes[first * TILE * width :][: count * TILE * width]
    codes = part.view(width, -1).view(torch.uint8).t()
    assert not codes[size:].any(), "what fills a group up is not zero"
    return Tiled(codes[:size].view(part.dtype), columns.scales[first : first + count], (TILE, 1))

"""Products in Triton are those of the numbers that their operands stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from parallel.ops.fp8.tiles import blocks, tiles_along_columns, tiles_along_rows
from parallel.ops.triton.grouped import add_grouped_product
from parallel.ops.triton.quantise import quantise_columns
from parallel.ops.triton.row_tiles import RowTiles
from parallel.ops.triton.scaled_products import add_scaled_product, scaled_product
from tests.kernels.ragged import ROWS, SIZES, groups

pytestmark = pytest.mark.gpu
OUTPUTS, INPUTS = 136, 208


def numbers(*shape: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    spread = torch.logspace(-2, 2, shape[-1])
    return (torch.randn(shape, generator=generator) * spread).bfloat16().to(device)


def near(found: Tensor, wanted: Tensor, relative: float = 1e-5) -> None:
    """To the root mean square of each row: sums of large and small numbers cancel."""
    off = (found.double() - wanted).square().mean(-1).sqrt()
    assert (off <= relative * wanted.square().mean(-1).sqrt() + 1e-30).all()


@pytest.mark.parametrize("on_host", [False, True])
def test_rows_of_groups_in_fp8(on_host: bool, device: torch.device) -> None:
    x = tiles_along_rows(numbers(ROWS, INPUTS, device=device))
    matrices = [blocks(each) for each in numbers(len(SIZES), OUTPUTS, INPUTS, device=device)]
    codes = torch.stack([each.codes.view(torch.uint8) for each in matrices]).view(x.codes.dtype)
    scales = torch.stack([each.scales for each in matrices])
    tiles = RowTiles.of(groups(device, on_host))
    found = scaled_product(x, codes, scales, tiles, torch.float32)
    parts = x.values(torch.float64).split(SIZES)
    wanted = [part @ each.values(torch.float64).t() for part, each in zip(parts, matrices)]
    near(found, torch.cat(wanted))
    narrow = scaled_product(x, codes, scales, tiles, torch.bfloat16)
    assert torch.equal(narrow, found.bfloat16())


def test_weight_gradients_in_fp8_are_added(device: torch.device) -> None:
    grad, x = (numbers(ROWS, width, device=device) for width in (OUTPUTS, INPUTS))
    into = torch.ones(len(SIZES), OUTPUTS, INPUTS, device=device)
    tiles = RowTiles.of(groups(device))
    add_scaled_product(into, quantise_columns(grad, tiles), quantise_columns(x, tiles))
    for group, (a, b) in enumerate(zip(grad.split(SIZES), x.split(SIZES))):
        if not len(a):
            assert (into[group] == 1).all()
            continue
        a, b = (tiles_along_columns(each).values(torch.float64) for each in (a, b))
        near(into[group], a.t() @ b + 1, 1e-4)


def test_a_product_with_one_matrix(device: torch.device) -> None:
    x, grad = numbers(ROWS, INPUTS, device=device), numbers(ROWS, OUTPUTS, device=device)
    weight, tiles = (
        blocks(numbers(OUTPUTS, INPUTS, device=device)),
        RowTiles.of_one_group(ROWS, device),
    )
    rows = tiles_along_rows(x)
    found = scaled_product(rows, weight.codes[None], weight.scales[None], tiles, torch.float32)
    near(found, rows.values(torch.float64) @ weight.values(torch.float64).t())
    into = torch.zeros(1, OUTPUTS, INPUTS, device=device)
    add_scaled_product(into, quantise_columns(grad, tiles), quantise_columns(x, tiles))
    a, b = (tiles_along_columns(each).values(torch.float64) for each in (grad, x))
    near(into[0], a.t() @ b, 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weight_gradients_of_groups_are_added(dtype: torch.dtype, device: torch.device) -> None:
    grad, x = (numbers(ROWS, width, device=device).to(dtype) for width in (OUTPUTS, INPUTS))
    into = torch.ones(len(SIZES), OUTPUTS, INPUTS, device=device)
    add_grouped_product(into, grad, x, groups(device))
    for group, (a, b) in enumerate(zip(grad.double().split(SIZES), x.double().split(SIZES))):
        near(into[group], a.t() @ b + 1)
    assert (into[1] == 1).all()

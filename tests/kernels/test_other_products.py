"""Products of others are called as they ask, and taken only where they are right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from parallel.ops.fp8.tiles import CODE
from parallel.ops.groups import Groups
from parallel.ops.triton.choice import agrees
from parallel.ops.triton.other_products import by_deep_gemm, by_torch, filled_up
from parallel.ops.triton.row_tiles import RowTiles
from tests.fake_fp8_products import DeepGemm, scaled_mm

pytestmark = pytest.mark.gpu


def test_torchs_product_is_called_as_it_asks(device: torch.device) -> None:
    assert agrees(by_torch(scaled_mm), 1, device)


@pytest.mark.parametrize("on_host", [True, False])
def test_deep_gemms_product_is_called_as_it_asks(on_host: bool, device: torch.device) -> None:
    """And where the host does not know how many rows each expert has."""
    assert agrees(by_deep_gemm(DeepGemm), 3, device)
    sizes = torch.tensor([130, 0, 5, 128], device=device)
    groups = Groups.of(sizes, sizes.tolist())
    tiles = RowTiles.of(groups if on_host else Groups(groups.ends_E, groups.rows))
    row_F, group_F, place_P = filled_up(tiles, groups.rows)
    assert row_F[place_P].tolist() == list(range(groups.rows))
    assert group_F[place_P].tolist() == [0] * 130 + [2] * 5 + [3] * 128
    assert int((group_F >= 0).sum()) == groups.rows and len(row_F) % 128 == 0


def test_a_product_that_is_wrong_or_does_not_run_is_not_taken(device: torch.device) -> None:
    def wrong(a: Tensor, *others: Tensor, **options: torch.dtype) -> Tensor:
        return scaled_mm((a.float() * 2).to(CODE), *others, **options)

    assert not agrees(by_torch(wrong), 1, device)
    assert not agrees(by_deep_gemm(None), 3, device)

"""Which kernels multiply in fp8 on a GPU: torch's for one matrix, DeepGEMM's for those of experts,
where they are there and give the numbers of ours in a trial before the first step; else ours."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import torch

from parallel.ops.groups import Groups
from parallel.ops.triton.other_products import by_deep_gemm, by_torch
from parallel.ops.triton.quantise import quantise_rows
from parallel.ops.triton.row_tiles import RowTiles
from parallel.ops.triton.scaled_products import ScaledProduct, scaled_product
from parallel.ops.triton.weights import Matrices

OURS = "triton"
_SIZES = (300, 0, 84)  # rows of the groups of a trial
_WIDTH, _OUTPUTS = 640, 256
_WITHIN = 4e-3  # of the norm: the rounding of results to bfloat16


@dataclass(frozen=True)
class ScaledProducts:
    """one: with one matrix. experts: with a matrix for each group of rows. Each with its name."""

    one: ScaledProduct = scaled_product
    experts: ScaledProduct = scaled_product
    one_name: str = OURS
    experts_name: str = OURS

    def describe(self) -> str:
        """Their names."""
        if self.one_name == self.experts_name:
            return self.one_name
        return f"{self.one_name}, of experts {self.experts_name}"


def chosen_products(device: torch.device) -> ScaledProducts:
    """For a CUDA device."""
    found = ScaledProducts()
    torchs = by_torch(torch.nn.functional.scaled_mm)
    if agrees(torchs, 1, device):
        found = ScaledProducts(torchs, found.experts, "torch", found.experts_name)
    try:
        deep_gemms = by_deep_gemm(importlib.import_module("deep_gemm"))
    except ImportError:
        return found
    if agrees(deep_gemms, len(_SIZES), device):
        found = ScaledProducts(found.one, deep_gemms, found.one_name, "deep_gemm")
    return found


def agrees(product: ScaledProduct, groups: int, device: torch.device) -> bool:
    """Whether it runs, and gives what our kernel gives."""
    generator = torch.Generator().manual_seed(0)
    rows = sum(_SIZES)
    x = torch.randn(rows, _WIDTH, generator=generator).bfloat16().to(device)
    weights = torch.randn(groups, _OUTPUTS, _WIDTH, generator=generator).bfloat16().to(device)
    sizes = _SIZES if groups > 1 else (rows,)
    tiles = RowTiles.of(Groups.of(torch.tensor(sizes, device=device), sizes))
    tiled, matrices = quantise_rows(x), Matrices.of(weights)
    arguments = tiled, matrices.codes_GOI, matrices.scales, tiles, torch.bfloat16
    try:
        found = product(*arguments).float()
    except Exception:  # whatever a package says that does not run here
        return False
    wanted = scaled_product(*arguments).float()
    return bool((found - wanted).norm() <= _WITHIN * wanted.norm())

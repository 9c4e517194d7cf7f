"""The three products with a weight in fp8, by these kernels: what a GPU runs in place of
parallel/ops/fp8/product.py. A weight [O, I] is a group of one.

Weights are kept as codes and scales in both orders, since on Hopper the operands of an fp8 product
lie along what is summed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from parallel.ops.accumulate import gradient_of
from parallel.ops.fp8.tiles import CODE, Tiled, blocks
from parallel.ops.groups import Groups
from parallel.ops.triton.quantise import quantise_columns, quantise_rows
from parallel.ops.triton.row_tiles import RowTiles
from parallel.ops.triton.scaled_products import add_scaled_product, scaled_product
from parallel.tape.weight_gradients import WeightGradients


@dataclass(frozen=True)
class Matrices:
    """codes_GOI, scales: in blocks of 128 x 128. The others: the same, each matrix transposed."""

    codes_GOI: Tensor
    scales: Tensor
    codes_GIO: Tensor
    scales_transposed: Tensor

    @classmethod
    def of(cls, weight_GOI: Tensor) -> Matrices:
        each = [blocks(matrix) for matrix in weight_GOI]
        codes = torch.stack([matrix.codes.view(torch.uint8) for matrix in each]).view(CODE)
        scales = torch.stack([matrix.scales for matrix in each])
        turned = codes.view(torch.uint8).transpose(1, 2).contiguous().view(CODE)
        return cls(codes, scales, turned, scales.transpose(1, 2).contiguous())


class TritonWeights:
    """Weights as fp8 holds them, until `forget`: whoever changes weights says so."""

    def __init__(self) -> None:
        self._kept: dict[Tensor, Matrices] = {}

    def of(self, weight: Tensor) -> Matrices:
        """Its matrices."""
        found = self._kept.get(weight)
        if found is None:
            found = Matrices.of(_as_group(weight.detach()))
            self._kept[weight] = found
        return found

    def forget(self) -> None:
        """Weights have changed."""
        self._kept.clear()


@dataclass(frozen=True)
class TritonProduct:
    """With a weight [O, I], or the weights [E, O, I] of experts, whose rows `groups` has. deferred:
    where weight gradients are left."""

    weight: Tensor
    groups: Groups | None
    deferred: WeightGradients
    weights: TritonWeights

    def quantise(self, x: Tensor, power_of_two: bool = False) -> Tiled:
        """[R, C] in tiles along rows."""
        return quantise_rows(x.contiguous(), power_of_two)

    def forward(self, x: Tiled, dtype: torch.dtype) -> Tensor:
        """[R, I], in tiles along rows -> [R, O], of `dtype`."""
        kept = self.weights.of(self.weight)
        tiles = self._tiles(len(x.codes), x.codes.device)
        return scaled_product(x, kept.codes_GOI, kept.scales, tiles, dtype)

    def input_gradient(self, grad_RO: Tensor) -> Tensor:
        """[R, O] -> [R, I], in the type of grad."""
        kept, tiles = self.weights.of(self.weight), self._tiles(len(grad_RO), grad_RO.device)
        grad = self.quantise(grad_RO)
        codes, scales = kept.codes_GIO, kept.scales_transposed
        return scaled_product(grad, codes, scales, tiles, grad_RO.dtype)

    def defer(self, grad_RO: Tensor, x: Tiled | Tensor) -> None:
        """Leave the weight gradients for later. The gradient is rounded at once. x: in tiles along
        rows, or itself."""
        tiles = self._tiles(len(grad_RO), grad_RO.device)
        grad = quantise_columns(grad_RO.contiguous(), tiles)
        if isinstance(x, Tensor):
            x = x.detach()  # else it would keep the graph that made it
        into_GOI = _as_group(gradient_of(self.weight))
        self.deferred.defer(lambda: add_scaled_product(into_GOI, grad, quantise_columns(x, tiles)))

    def _tiles(self, rows: int, device: torch.device) -> RowTiles:
        return self._of_experts or RowTiles.of_one_group(rows, device)

    @cached_property
    def _of_experts(self) -> RowTiles | None:
        return None if self.groups is None else RowTiles.of(self.groups)


def _as_group(weight: Tensor) -> Tensor:
    return weight.unsqueeze(0) if weight.ndim == 2 else weight

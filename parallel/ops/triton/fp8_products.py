"""The three products with a weight in fp8, by these kernels: what a GPU runs in place of
parallel/ops/fp8/product.py. A weight [O, I] is a group of one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from parallel.ops.accumulate import gradient_of
from parallel.ops.fp8.tiles import Tiled
from parallel.ops.groups import Groups
from parallel.ops.triton.quantise import quantise_columns, quantise_rows
from parallel.ops.triton.row_tiles import RowTiles
from parallel.ops.triton.scaled_products import ScaledProduct, add_scaled_product
from parallel.ops.triton.weights import TritonWeights, as_group
from parallel.tape.weight_gradients import WeightGradients


@dataclass(frozen=True)
class TritonProduct:
    """With a weight [O, I], or the weights [E, O, I] of experts, whose rows `groups` has. deferred:
    where weight gradients are left. multiply: the first two products."""

    weight: Tensor
    groups: Groups | None
    deferred: WeightGradients
    weights: TritonWeights
    multiply: ScaledProduct

    def quantise(self, x: Tensor, power_of_two: bool = False) -> Tiled:
        """[R, C] in tiles along rows."""
        return quantise_rows(x.contiguous(), power_of_two)

    def forward(self, x: Tiled, dtype: torch.dtype) -> Tensor:
        """[R, I], in tiles along rows -> [R, O], of `dtype`."""
        kept = self.weights.of(self.weight)
        tiles = self._tiles(len(x.codes), x.codes.device)
        return self.multiply(x, kept.codes_GOI, kept.scales, tiles, dtype)

    def input_gradient(self, grad_RO: Tensor) -> Tensor:
        """[R, O] -> [R, I], in the type of grad."""
        kept, tiles = self.weights.of(self.weight), self._tiles(len(grad_RO), grad_RO.device)
        grad = self.quantise(grad_RO)
        codes, scales = kept.codes_GIO, kept.scales_transposed
        return self.multiply(grad, codes, scales, tiles, grad_RO.dtype)

    def defer(self, grad_RO: Tensor, x: Tiled | Tensor) -> None:
        """Leave the weight gradients for later. The gradient is rounded at once. x: in tiles along
        rows, or itself."""
        tiles = self._tiles(len(grad_RO), grad_RO.device)
        grad = quantise_columns(grad_RO.contiguous(), tiles)
        if isinstance(x, Tensor):
            x = x.detach()  # else it would keep the graph that made it
        into_GOI = as_group(gradient_of(self.weight))
        self.deferred.defer(lambda: add_scaled_product(into_GOI, grad, quantise_columns(x, tiles)))

    def _tiles(self, rows: int, device: torch.device) -> RowTiles:
        return self._of_experts or RowTiles.of_one_group(rows, device)

    @cached_property
    def _of_experts(self) -> RowTiles | None:
        return None if self.groups is None else RowTiles.of(self.groups)

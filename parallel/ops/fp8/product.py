"""The three products with a weight in fp8: forward, input gradient and weight gradient
(DeepSeek-V3, arXiv 2412.19437, figure 6 and section 3.3.2).

Each operand is rounded to fp8 in tiles. On a CPU the values that its codes stand for are multiplied
in float32: what tensor cores give when partial sums of 128 products are promoted to float32, but
for the order of additions. What waits for the weight gradient is codes and scales, of the input and
of the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from parallel.ops.accumulate import gradient_of
from parallel.ops.fp8.tiles import Tiled, tiles_along_columns, tiles_along_rows
from parallel.ops.fp8.weights import QuantisedWeights
from parallel.ops.grouped import grouped_product
from parallel.ops.groups import Groups
from parallel.ops.precision import accurate_type
from parallel.ops.products import add_product, linear_product, product
from parallel.tape.weight_gradients import WeightGradients


class AnyProduct(Protocol):
    """What a function needs of the products with its weight."""

    def quantise(self, x: Tensor, power_of_two: bool = False) -> Tiled:
        """[R, C] in tiles along rows."""

    def forward(self, x: Tiled, dtype: torch.dtype) -> Tensor:
        """[R, I], in tiles along rows -> [R, O], of `dtype`."""

    def input_gradient(self, grad_RO: Tensor) -> Tensor:
        """[R, O] -> [R, I], in the type of grad."""

    def defer(self, grad_RO: Tensor, x: Tiled | Tensor) -> None:
        """Leave the weight gradient for later. x: in tiles along rows, or itself. The gradient is
        rounded at once, and half the memory waits."""


@dataclass(frozen=True)
class Fp8Product:
    """With a weight [O, I], as `weights` has it in fp8. deferred: where its gradient is left."""

    weight: Tensor
    deferred: WeightGradients
    weights: QuantisedWeights

    def quantise(self, x: Tensor, power_of_two: bool = False) -> Tiled:
        return tiles_along_rows(x, power_of_two)

    def forward(self, x: Tiled, dtype: torch.dtype) -> Tensor:
        values_TI = x.values(accurate_type(dtype))
        return linear_product(values_TI, self.weights.values(self.weight)).to(dtype)

    def input_gradient(self, grad_TO: Tensor) -> Tensor:
        values_TO = tiles_along_rows(grad_TO).values(accurate_type(grad_TO.dtype))
        return product(values_TO, self.weights.values(self.weight)).to(grad_TO.dtype)

    def defer(self, grad_TO: Tensor, x: Tiled | Tensor) -> None:
        grad = tiles_along_columns(grad_TO)
        if isinstance(x, Tensor):
            x = x.detach()  # else it would keep the graph that made it
        self.deferred.defer(lambda: _add(gradient_of(self.weight), grad, x))


@dataclass(frozen=True)
class Fp8GroupedProduct:
    """With the weights [E, O, I] of experts. groups: the rows of each, P in all. Where a product
    sums over rows, each expert has tiles of its own."""

    weight_EOI: Tensor
    groups: Groups
    deferred: WeightGradients
    weights: QuantisedWeights

    def quantise(self, x: Tensor, power_of_two: bool = False) -> Tiled:
        return tiles_along_rows(x, power_of_two)

    def forward(self, x: Tiled, dtype: torch.dtype) -> Tensor:
        values_EIO = self.weights.values(self.weight_EOI).transpose(1, 2)
        values_PI = x.values(accurate_type(dtype))
        return grouped_product(values_PI, values_EIO, self.groups).to(dtype)

    def input_gradient(self, grad_PO: Tensor) -> Tensor:
        values_EOI = self.weights.values(self.weight_EOI)
        values_PO = tiles_along_rows(grad_PO).values(accurate_type(grad_PO.dtype))
        return grouped_product(values_PO, values_EOI, self.groups).to(grad_PO.dtype)

    def defer(self, grad_PO: Tensor, x: Tiled | Tensor) -> None:
        x = x if isinstance(x, Tiled) else self.quantise(x)
        parts = [slice(rows.start, rows.stop) for rows in self.groups.ranges()]
        filled = {expert: part for expert, part in enumerate(parts) if part.stop > part.start}
        grads = {expert: tiles_along_columns(grad_PO[part]) for expert, part in filled.items()}

        def accumulate() -> None:
            into_EOI = gradient_of(self.weight_EOI)
            for expert, part in filled.items():
                rows = Tiled(x.codes[part], x.scales[part], x.tile)
                _add(into_EOI[expert], grads[expert], rows)

        self.deferred.defer(accumulate)


def _add(into_OI: Tensor, grad: Tiled, x_TI: Tiled | Tensor) -> None:
    """into += grad transposed @ x, both in tiles along the rows that are summed over, of x made
    here."""
    values_TI = x_TI if isinstance(x_TI, Tensor) else x_TI.values()
    x = tiles_along_columns(values_TI)
    add_product(into_OI, grad.values(into_OI.dtype), x.values(into_OI.dtype))

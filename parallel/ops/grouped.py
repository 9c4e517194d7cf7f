"""Grouped matrix products: rows sorted by expert, each expert with a matrix of its own.

Which kernel runs was decided by measurement (docs/experts.md): torch's grouped_mm for products
with the weights wherever it takes the operands; for weight gradients grouped_mm on CUDA, while on
the CPU one addmm_ per expert straight into the gradient is faster, since grouped_mm cannot
accumulate. A loop over experts serves what grouped_mm refuses (float64, unaligned widths), and
where oneDNN multiplies, which wants few different numbers of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from parallel.ops.accumulate import gradient_of
from parallel.ops.groups import Groups
from parallel.ops.products import add_product, compiles_by_shape, emulated, product
from parallel.tape.weight_gradients import WeightGradients

_ALIGNMENT = 16  # bytes that grouped_mm wants each row to be a multiple of
_ALIKE = 64  # rows, of which oneDNN is given a multiple


def grouped_linear(x_PI: Tensor, product: GroupedProduct) -> Tensor:
    """Rows x weight of their expert, transposed: [P, I] -> [P, O]."""
    return _GroupedLinear.apply(x_PI, product)


AddGrouped: TypeAlias = Callable[[Tensor, Tensor, Tensor, Groups], None]
"""into += of each group, its rows of grad transposed @ its rows of x."""


@dataclass(frozen=True)
class GroupedProduct:
    """Three products with the weights [E, O, I] of experts. groups: the rows of each, P in all.
    deferred: where the third is left. add: computes it."""

    weight_EOI: Tensor
    groups: Groups
    deferred: WeightGradients
    add: AddGrouped

    def forward(self, x_PI: Tensor) -> Tensor:
        """-> [P, O]."""
        return grouped_product(x_PI, self.weight_EOI.transpose(1, 2), self.groups)

    def input_gradient(self, grad_PO: Tensor) -> Tensor:
        """-> [P, I]. grad: contiguous."""
        return grouped_product(grad_PO, self.weight_EOI, self.groups)

    def defer(self, grad_PO: Tensor, x_PI: Tensor) -> None:
        """Leave the weight gradients for later. grad: contiguous."""
        x_PI = x_PI.detach()  # else it would keep the graph that made it
        self.deferred.defer(
            lambda: self.add(gradient_of(self.weight_EOI), grad_PO, x_PI, self.groups)
        )


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_PI, product):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x_PI)
        ctx.product = product
        return product.forward(x_PI)

    @staticmethod
    def backward(ctx, grad_PO):  # type: ignore[no-untyped-def]
        (x_PI,), grad_PO = ctx.saved_tensors, grad_PO.contiguous()
        ctx.product.defer(grad_PO, x_PI)
        return ctx.product.input_gradient(grad_PO), None


def grouped_product(x_PI: Tensor, weight_EIO: Tensor, groups: Groups) -> Tensor:
    """Each expert's rows times its matrix: [P, I], [E, I, O] -> [P, O]."""
    if emulated(x_PI):
        return grouped_product(x_PI.float(), weight_EIO.float(), groups).to(x_PI.dtype)
    alike = compiles_by_shape(x_PI)
    if len(x_PI) and _served(x_PI, weight_EIO) and not alike:
        return grouped_mm(x_PI, weight_EIO, offs=groups.ends_E)
    y_PO = x_PI.new_empty(len(x_PI), weight_EIO.shape[2])
    for expert, rows in enumerate(groups.ranges()):
        around = _around(rows, len(x_PI)) if alike else rows
        y_RO = product(x_PI[around.start : around.stop], weight_EIO[expert])
        y_PO[rows.start : rows.stop] = y_RO[rows.start - around.start :][: len(rows)]
    return y_PO


def add_grouped_product(into_EOI: Tensor, grad_PO: Tensor, x_PI: Tensor, groups: Groups) -> None:
    """Add each expert's weight gradient, its rows of grad transposed @ its rows of x."""
    if len(x_PI) and not x_PI.is_cpu and _served(grad_PO, x_PI):
        product_EOI = grouped_mm(grad_PO.t(), x_PI, offs=groups.ends_E)
        # Experts without a token have undefined gradients on some GPUs (pytorch issue 172439).
        rows_E = groups.ends_E.diff(prepend=groups.ends_E.new_zeros(1))
        into_EOI.add_(torch.where(rows_E[:, None, None] > 0, product_EOI, 0))
        return
    for expert, rows in enumerate(groups.ranges()):
        grad_RO, around = grad_PO[rows.start : rows.stop], rows
        if compiles_by_shape(x_PI):
            around = _around(rows, len(x_PI))
            before, after = rows.start - around.start, around.stop - rows.stop
            grad_RO = torch.nn.functional.pad(grad_RO, (0, 0, before, after))
        add_product(into_EOI[expert], grad_RO, x_PI[around.start : around.stop])


def _around(rows: range, total: int) -> range:
    """Of `total` rows these and, if there are so many, others beside them that make their number a
    multiple of _ALIKE: so that few numbers of rows occur."""
    number = -(-len(rows) // _ALIKE) * _ALIKE
    first = max(0, min(rows.start, total - number))
    return range(first, first + number) if first + number <= total else rows


def _served(a: Tensor, b: Tensor) -> bool:
    """Whether grouped_mm takes these operands, without a sync on CUDA."""
    dtypes = (torch.float32, torch.bfloat16) if a.is_cpu else (torch.bfloat16,)
    widths = (a.shape[-1], *b.shape[-2:])
    return a.dtype in dtypes and all(width * a.element_size() % _ALIGNMENT == 0 for width in widths)

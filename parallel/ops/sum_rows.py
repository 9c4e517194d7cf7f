"""Rows taken by number, and sums of rows by number: each is the other's backward, for which the
numbers alone are kept; torch's index_add would keep the rows as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

AddRows: TypeAlias = Callable[[Tensor, Tensor, int], Tensor]
"""y [rows, D] with y[r] the sum of the x [P, D] whose number in row_P (int64) is r, in the type of
x: of (x, row_P, rows)."""


def add_rows(x_PD: Tensor, row_P: Tensor, rows: int) -> Tensor:
    """By torch, which on CUDA adds in whatever order rows come, and rounds each addition."""
    return x_PD.new_zeros(rows, x_PD.shape[1]).index_add_(0, row_P, x_PD)


def sum_rows(x_PD: Tensor, row_P: Tensor, rows: int, add: AddRows) -> Tensor:
    """y [rows, D] with y[r] the sum of the x whose number in row_P (int64) is r."""
    return _SumRows.apply(x_PD, row_P, rows, add)


def take_rows(x_TD: Tensor, row_P: Tensor, add: AddRows) -> Tensor:
    """The rows of x with the numbers row_P (int64), [P, D]."""
    return _TakeRows.apply(x_TD, row_P, add)


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_PD: Tensor, row_P: Tensor, rows: int, add: AddRows) -> Tensor:
        ctx.save_for_backward(row_P)
        return add(x_PD, row_P, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (row_P,) = ctx.saved_tensors
        return grad.index_select(0, row_P), None, None, None


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, row_P: Tensor, add: AddRows) -> Tensor:
        ctx.save_for_backward(row_P)
        ctx.rows, ctx.add = len(x_TD), add
        return x_TD.index_select(0, row_P)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (row_P,) = ctx.saved_tensors
        return ctx.add(grad.contiguous(), row_P, ctx.rows), None, None

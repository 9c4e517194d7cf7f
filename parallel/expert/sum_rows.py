"""Sums of rows by number, whose backward needs no row: only the numbers are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def sum_rows(x_PD: Tensor, row_P: Tensor, rows: int) -> Tensor:
    """y [rows, D] with y[r] the sum of the x whose number in row_P (int64) is r; torch's index_add
    would keep x as well."""
    return _SumRows.apply(x_PD, row_P, rows)


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_PD: Tensor, row_P: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(row_P)
        return x_PD.new_zeros(rows, x_PD.shape[1]).index_add_(0, row_P, x_PD)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (row_P,) = ctx.saved_tensors
        return grad.index_select(0, row_P), None, None

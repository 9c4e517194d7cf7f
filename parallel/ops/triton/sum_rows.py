"""Sums of rows by number, in float32 and in one order: torch's index_add adds on CUDA in whatever
order rows come, and rounds each addition.

Shapes: P rows, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.ops.triton.compiler import ceil_div, jit, launch, tl

_COLUMNS = 1024


def sum_rows(x_PD: Tensor, row_P: Tensor, rows: int) -> Tensor:
    """y [rows, D], with y[r] the sum of the x (contiguous) whose number in row_P (int64) is r, in
    the type of x; in the order of x. The host waits for nothing."""
    sorted_P, order_P = row_P.sort(stable=True)
    starts = torch.searchsorted(sorted_P, torch.arange(rows + 1, device=row_P.device))
    y = x_PD.new_empty(rows, x_PD.shape[1])
    grid = (rows, ceil_div(x_PD.shape[1], _COLUMNS))
    launch(_sum_rows, grid, x_PD, order_P, starts, y, x_PD.shape[1], _COLUMNS)
    return y


@jit
def _sum_rows(x_PD, order_P, starts, y, width, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column_C = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sum_C = tl.zeros((COLUMNS,), tl.float32)
    for place in range(tl.load(starts + row), tl.load(starts + row + 1)):
        source = x_PD + tl.load(order_P + place) * width + column_C
        sum_C += tl.load(source, mask=column_C < width, other=0.0).to(tl.float32)
    into = y + row * width + column_C
    tl.store(into, sum_C.to(y.dtype.element_ty), mask=column_C < width)

"""Weight gradients of experts, added to float32 without a rounded or a second copy of them: torch's
grouped product writes bfloat16, which then has to be read, masked and added.

Shapes: P rows sorted by group, O outputs, I inputs, G groups.
"""

from __future__ import annotations

from torch import Tensor

from parallel.ops.groups import Groups
from parallel.ops.triton.compiler import ceil_div, jit, launch, tl

_BLOCK, _ROWS = 128, 64
_WARPS, _STAGES = 8, 4  # not tuned on a GPU


def add_grouped_product(into_GOI: Tensor, grad_PO: Tensor, x_PI: Tensor, groups: Groups) -> None:
    """into += of each group, its rows of grad transposed @ its rows of x, summed in float32.

    into: float32, contiguous. grad, x: of one type, contiguous. A group without rows is neither
    read nor written.
    """
    count, outputs, inputs = into_GOI.shape
    grid = (ceil_div(outputs, _BLOCK), ceil_div(inputs, _BLOCK), count)
    launch(
        _add_grouped_product, grid,
        into_GOI, grad_PO, x_PI, groups.ends_E, outputs, inputs, _BLOCK, _ROWS,
        num_warps=_WARPS, num_stages=_STAGES,
    )  # fmt: skip


@jit
def _add_grouped_product(
    into_GOI, grad_PO, x_PI, ends_G, outputs, inputs, T: tl.constexpr, ROWS: tl.constexpr
):
    group = tl.program_id(2)
    start = tl.load(ends_G + group - 1, mask=group > 0, other=0)
    end = tl.load(ends_G + group)
    if start < end:
        output_T = tl.program_id(0) * T + tl.arange(0, T)
        input_T = tl.program_id(1) * T + tl.arange(0, T)
        sum_TT = tl.zeros((T, T), tl.float32)
        for first in range(start, end, ROWS):
            row_R = (first + tl.arange(0, ROWS)).to(tl.int64)
            grad_TR = tl.load(
                grad_PO + row_R[None, :] * outputs + output_T[:, None],
                mask=(row_R < end)[None, :] & (output_T < outputs)[:, None],
                other=0.0,
            )
            x_RT = tl.load(
                x_PI + row_R[:, None] * inputs + input_T[None, :],
                mask=(row_R < end)[:, None] & (input_T < inputs)[None, :],
                other=0.0,
            )
            sum_TT = tl.dot(grad_TR, x_RT, sum_TT)
        into = into_GOI + group.to(tl.int64) * outputs * inputs
        into += output_T[:, None].to(tl.int64) * inputs + input_T[None, :]
        inside_TT = (output_T < outputs)[:, None] & (input_T < inputs)[None, :]
        tl.store(into, tl.load(into, mask=inside_TT) + sum_TT, mask=inside_TT)

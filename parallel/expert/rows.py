"""Copies of rows to other ranks, and back, added up: a collective and its transpose.

What is sent is gathered straight into one message: the rows of several tensors side by side, as
bytes, so that no type is rounded to another. What comes back is one message per tensor, since
joining them would copy them all.

Shapes: T rows here, S copies sent, N received.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.expert.all_to_all import InFlight, start_all_to_all
from parallel.ops.sum_rows import AddRows

_ALIGNED = 16  # bytes, at a multiple of which each tensor's part of a row begins


@dataclass(frozen=True)
class RowPlan:
    """Which rows go where. Rank i of `group` gets the next send_rows[i] of the rows numbered in
    row_S (int64), of `rows` in all; we get receive_rows[i] of its. add: what adds up copies that
    have come back."""

    group: dist.ProcessGroup
    send_rows: tuple[int, ...]
    receive_rows: tuple[int, ...]
    row_S: Tensor
    rows: int
    add: AddRows


@dataclass(frozen=True)
class SendCopies:
    """Rows [T, ...] of each tensor to the ranks of the plan; what arrives is [N, ...]."""

    plan: RowPlan

    @property
    def copies(self) -> bool:
        return True

    def start(self, *tensors: Tensor) -> InFlight:
        """tensors: [T, width] each."""
        plan, layout = self.plan, _SideBySide.of(tensors)
        message = tensors[0].new_empty((len(plan.row_S), layout.width), dtype=torch.uint8)
        for tensor, part in zip(tensors, layout.parts(message)):
            torch.index_select(tensor, 0, plan.row_S, out=part)
        return start_all_to_all(
            plan.group, plan.send_rows, plan.receive_rows, (message,), layout.parts
        )

    def reversed(self) -> SumCopies:
        return SumCopies(self.plan)


@dataclass(frozen=True)
class SumCopies:
    """Rows [N, ...] of each tensor back to where they came from; what arrives is their sum by row
    there, [T, ...]."""

    plan: RowPlan

    @property
    def copies(self) -> bool:
        return False

    def start(self, *tensors: Tensor) -> InFlight:
        plan = self.plan
        return start_all_to_all(
            plan.group, plan.receive_rows, plan.send_rows, tensors, self._add_up
        )

    def reversed(self) -> SendCopies:
        return SendCopies(self.plan)

    def _add_up(self, *arrived: Tensor) -> tuple[Tensor, ...]:
        plan = self.plan
        return tuple(plan.add(each, plan.row_S, plan.rows) for each in arrived)


@dataclass(frozen=True)
class _SideBySide:
    """Where in a row of bytes the row of each tensor is. width: of the whole, in bytes."""

    dtypes: tuple[torch.dtype, ...]
    ranges: tuple[tuple[int, int], ...]
    width: int

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> _SideBySide:
        widths = [tensor.shape[1] * tensor.element_size() for tensor in tensors]
        starts = list(accumulate((-(-width // _ALIGNED) * _ALIGNED for width in widths), initial=0))
        ranges = tuple((start, start + width) for start, width in zip(starts, widths))
        return cls(tuple(tensor.dtype for tensor in tensors), ranges, starts[-1])

    def parts(self, message: Tensor) -> tuple[Tensor, ...]:
        """Of a message [rows, width] those of each tensor, as views."""
        return tuple(
            message[:, start:end].view(dtype)
            for dtype, (start, end) in zip(self.dtypes, self.ranges)
        )

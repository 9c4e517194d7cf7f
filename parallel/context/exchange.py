"""What the ranks of a context group tell each other, on the tape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.context.chunks import Chunks
from parallel.expert.rows import RowPlan, SendCopies
from parallel.ops.sum_rows import AddRows
from parallel.ranks.groups import started


@dataclass(frozen=True)
class ContextGroup:
    """The ranks that share sequences, as one of them sees it. rows, counts: two groups of the same
    ranks: sums must not wait behind rows. add: adds up gradients of rows that went to all ranks."""

    rows: dist.ProcessGroup
    counts: dist.ProcessGroup
    chunks: Chunks
    add: AddRows

    def gather(self, x_TE: Tensor) -> SendCopies:
        """The collective that gives each rank the rows of all, one rank after the other; its
        reverse adds up what all ranks have for each row."""
        rows, ranks = len(x_TE), self.chunks.ranks
        every_S = torch.arange(rows, device=x_TE.device).repeat(ranks)
        each = (rows,) * ranks
        return SendCopies(RowPlan(self.rows, each, each, every_S, rows, self.add))

    def sum(self) -> SumOverRanks:
        """Of counts."""
        return SumOverRanks(self.counts)


@dataclass(frozen=True)
class SumOverRanks:
    """Sums of tensors over a group; there is no backward."""

    group: dist.ProcessGroup

    def start(self, *tensors: Tensor) -> _Summed:
        """tensors: any, of the same shape on each rank."""
        sums = tuple(tensor.clone() for tensor in tensors)
        works = [started(dist.all_reduce(each, group=self.group, async_op=True)) for each in sums]
        return _Summed(works, sums)


@dataclass(frozen=True)
class _Summed:
    works: list[dist.Work]
    sums: tuple[Tensor, ...]

    def wait(self) -> None:
        for work in self.works:
            work.wait()

    def results(self) -> tuple[Tensor, ...]:
        return self.sums

    def follow(self) -> None:
        """Make the current stream of a GPU wait until it is done."""
        self.wait()

"""What one copy of a bucket updates: all of it, or a share, which it then gives to the others.

Without a cut, gradients are summed over the copies and every copy updates everything. With one
(ZeRO-1, arXiv 1910.02054), a copy needs the sum for its own share only, and its new values go to
the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch.distributed as dist
from torch import Tensor

from parallel.ranks.groups import started
from parallel.reduce.bucket import Bucket

Ranges: TypeAlias = tuple[tuple[int, int], ...]
"""Elements of a bucket's buffers, as (first, last + 1), ascending."""
Cut: TypeAlias = tuple[Ranges, ...]
"""By copy, in the order of the ranks, what it updates."""
Finish: TypeAlias = Callable[[], None]
"""Waits for a collective that has been started."""


def cut_evenly(bucket: Bucket) -> Cut:
    """Equal shares, in order."""
    section = len(bucket.values) // len(bucket.ranks)
    return tuple(((i * section, (i + 1) * section),) for i in range(len(bucket.ranks)))


@dataclass(frozen=True)
class Share:
    """A bucket, and what this rank updates of it. cut: None where every copy updates all."""

    bucket: Bucket
    cut: Cut | None
    rank: int

    @property
    def ranges(self) -> Ranges:
        """What this rank updates."""
        if self.cut is None:
            return ((0, len(self.bucket.values)),)
        return self.cut[self.bucket.ranks.index(self.rank)]

    @property
    def counts_here(self) -> bool:
        """Whether this rank is the one that counts its ranges in the norm, and saves their
        state."""
        return self.cut is not None or self.bucket.ranks[0] == self.rank

    def gradients(self) -> list[Tensor]:
        """Of this rank's ranges, once reduced."""
        return [self.bucket.gradient[start:stop] for start, stop in self.ranges]

    def reduce(self) -> Finish:
        """Start summing gradients over the copies; what the ranges of other copies hold in the end
        is not defined."""
        flat, group = self.bucket.gradient, self.bucket.group
        if group is None:
            return _nothing
        if self.cut is None or flat.is_cpu:  # gloo's all-reduce takes a third of the time
            return _waiting(dist.all_reduce(flat, group=group, async_op=True))
        sections = self._packed(flat)
        mine = sections[self._index]
        work = _reduce_scatter(mine, sections.view(-1), group=group, async_op=True)
        return _waiting(work, lambda: self._unpack(mine, self._index, flat))

    def gather(self) -> Finish:
        """Start giving this rank's new values to the other copies, and taking theirs."""
        flat, group = self.bucket.values, self.bucket.group
        if self.cut is None or group is None:
            return _nothing
        sections = self._packed(flat)
        work = _all_gather(sections.view(-1), sections[self._index], group=group, async_op=True)
        return _waiting(work, lambda: self._unpack_all(sections, flat))

    @property
    def _index(self) -> int:
        return self.bucket.ranks.index(self.rank)

    def _packed(self, flat: Tensor) -> Tensor:
        """The ranges of each copy as one row; a view where the cut is even."""
        assert self.cut is not None
        if self.cut == cut_evenly(self.bucket):
            return flat.view(len(self.cut), -1)
        sizes = [sum(stop - start for start, stop in ranges) for ranges in self.cut]
        rows = flat.new_zeros(len(self.cut), max(sizes))
        for row, ranges in zip(rows, self.cut):
            done = 0
            for start, stop in ranges:
                row[done : done + stop - start] = flat[start:stop]
                done += stop - start
        return rows

    def _unpack_all(self, rows: Tensor, flat: Tensor) -> None:
        for index, row in enumerate(rows):
            self._unpack(row, index, flat)

    def _unpack(self, row: Tensor, index: int, flat: Tensor) -> None:
        """The opposite of packing, for the row of one copy."""
        assert self.cut is not None
        done = 0
        for start, stop in self.cut[index]:
            if not _same_place(flat[start:stop], row[done:]):
                flat[start:stop] = row[done : done + stop - start]
            done += stop - start


def _same_place(a: Tensor, b: Tensor) -> bool:
    """Whether two views begin at one place of one storage."""
    one_storage = a.untyped_storage()._cdata == b.untyped_storage()._cdata
    return one_storage and bool(a.storage_offset() == b.storage_offset())


def _nothing() -> None:
    pass


def _waiting(work: dist.Work | None, then: Finish = _nothing) -> Finish:
    in_flight = started(work)

    def finish() -> None:
        in_flight.wait()
        then()

    return finish


# The newer names of torch, where it has them; the older ones warn there.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

"""Rows sorted by group: where each group ends, on the device and on the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """ends_E: int32, for each group the row after its last. rows: the last of them. sizes: rows of
    each group, where the host knows them."""

    ends_E: Tensor
    rows: int
    sizes: tuple[int, ...] | None = None

    @classmethod
    def of(cls, sizes_E: Tensor, on_host: Sequence[int]) -> Groups:
        """From the sizes of the groups, on the device and on the host."""
        sizes = tuple(on_host)
        return cls(sizes_E.cumsum(0).to(torch.int32), sum(sizes), sizes)

    def ranges(self) -> Iterator[range]:
        """The rows of each group. A host that does not know them waits for the device, once."""
        return map(range, [0, *self._ends[:-1]], self._ends)

    @cached_property
    def _ends(self) -> list[int]:
        if self.sizes is None:
            ends: list[int] = self.ends_E.tolist()
            return ends
        total = 0
        return [total := total + size for size in self.sizes]

"""Rows of groups in tiles of 128, so that no tile has rows of two groups.

Kernels start one program per tile. Where the host knows the sizes of the groups there are as many
tiles as are needed; else as many as there can be, and programs of tiles that are none do nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.ops.groups import Groups
from parallel.ops.triton.compiler import jit, tl

TILE = 128


@dataclass(frozen=True)
class RowTiles:
    """ends_G: int32, of each group the row after its last. first_G1: int32, the first tile of each
    group, and after the last the number of tiles. count: how many tiles to start, at least as many.
    """

    ends_G: Tensor
    first_G1: Tensor
    count: int

    @classmethod
    def of(cls, groups: Groups) -> RowTiles:
        ends_G = groups.ends_E
        sizes_G = ends_G.diff(prepend=ends_G.new_zeros(1))
        first_G1 = ends_G.new_zeros(len(ends_G) + 1)
        torch.cumsum((sizes_G + (TILE - 1)) // TILE, 0, dtype=torch.int32, out=first_G1[1:])
        if groups.sizes is None:
            return cls(ends_G, first_G1, groups.rows // TILE + len(ends_G))
        return cls(ends_G, first_G1, sum(-(-size // TILE) for size in groups.sizes))

    @classmethod
    def of_one_group(cls, rows: int, device: torch.device) -> RowTiles:
        """Of a product that has one matrix."""
        tiles = -(-rows // TILE)
        both = torch.tensor([rows, 0, tiles], dtype=torch.int32, device="cpu")
        both = both.to(device, non_blocking=True)
        return cls(both[:1], both[1:], tiles)

    @property
    def groups(self) -> int:
        return len(self.ends_G)


@jit
def group_of_tile(first_G1, tile, GROUPS: tl.constexpr, POWER: tl.constexpr):
    """The group that tile belongs to; GROUPS if there is no such tile. POWER: a power of two from
    GROUPS on."""
    group = tl.arange(0, POWER)
    first_after = tl.load(first_G1 + 1 + group, mask=group < GROUPS, other=2**30)
    return tl.sum((first_after <= tile).to(tl.int32), 0)


@jit
def rows_of_tile(ends_G, first_G1, tile, group, TILE_ROWS: tl.constexpr):
    """(the rows of a tile of the group, the row after the group's last)."""
    start = tl.load(ends_G + group - 1, mask=group > 0, other=0)
    row = start + (tile - tl.load(first_G1 + group)) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    return row, tl.load(ends_G + group)

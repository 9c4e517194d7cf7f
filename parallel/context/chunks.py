"""How the ranks of a context group share a sequence: in 2 x R chunks, of which rank r has chunk r
and, counted from the end, chunk r again. Causal attention is then the same work for each.

Shapes: B sequences of S tokens, R ranks of the group, L = S / (2 R) tokens of a chunk. A rank's own
tokens are 2 B rows of L, both chunks of a sequence beside each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chunks:
    """Of rank `rank` of `ranks`, for sequences of `length` tokens."""

    rank: int
    ranks: int
    length: int

    @property
    def own(self) -> tuple[int, int]:
        """The numbers of its two chunks."""
        return self.rank, 2 * self.ranks - 1 - self.rank

    @property
    def chunk(self) -> int:
        """L."""
        return self.length // (2 * self.ranks)

    def rows(self, x: Tensor) -> Tensor:
        """Of windows [B, S + more], of which the last `more` are looked ahead at, those of its rows
        [2 B, L + more]."""
        width = self.chunk + x.shape[1] - self.length
        parts = [x[:, number * self.chunk :][:, :width] for number in self.own]
        return torch.stack(parts, 1).flatten(0, 1)

    def positions(self, rows: int, device: torch.device) -> Tensor:
        """Of its tokens in 2 B = `rows` rows, [rows x L] int64."""
        within_L = torch.arange(self.chunk, device=device)
        both_2L = torch.stack([within_L + number * self.chunk for number in self.own])
        return both_2L.repeat(rows // 2, 1).flatten()

    def in_order(self, gathered: Tensor) -> Tensor:
        """Rows of all ranks, one rank after the other, [R x 2 B x L, E] -> sequences [B x S, E]."""
        x_R2BLE = gathered.view(self.ranks, -1, 2, self.chunk, gathered.shape[-1])
        early, late = x_R2BLE.unbind(2)  # [R, B, L, E] each
        both = torch.cat([early, late.flip(0)])
        return both.transpose(0, 1).reshape(-1, gathered.shape[-1])

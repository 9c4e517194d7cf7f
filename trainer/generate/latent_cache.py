"""What generation keeps of the tokens so far: DeepSeek-V2 (arXiv 2405.04434) section 2.1.

Shapes: S texts at most, P positions of each, E = C + R numbers of a token; a pass reads T new
tokens, those of each text end to end. B texts, N new tokens of each and L tokens with them in a
block of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

# Memory of the caches is cleared for this many positions at a time, as texts come to them.
_CLEARED = 256


class Block(NamedTuple):
    """Texts that read equally many tokens in a pass.

    rows: of the pass. slots: of the B texts; N: how many tokens each reads. L: the length of the
    longest text, new tokens included. mask_BNL: 0 where a new token sees another token, minus
    infinity where not; [1, 1, 1] where all see all.
    """

    rows: slice
    slots: slice
    B: int
    N: int
    L: int
    mask_BNL: Tensor


class Reading(NamedTuple):
    """A pass: slot and position of each new token, its rotation (complex, one of each pair), and
    the blocks that attend together."""

    slot_T: Tensor
    position_T: Tensor
    rotation_T1R: Tensor
    blocks: tuple[Block, ...]


class LatentCaches:
    """What layers that read the same tokens keep of texts: C + R numbers per token and layer,
    whatever the number of heads.

    entries: of each layer [S, P, C + R]; a token's normalised key-value latent [C] and, after it,
    the rotated key [R] that all heads share. lengths: tokens of each text that have been read.
    reading: the pass that is going on.
    """

    reading: Reading

    def __init__(self, entries: Sequence[Tensor], rotation_PR: Tensor) -> None:
        """entries: not set. rotation_PR: complex, of each pair at every position."""
        self.entries, self._rotation_PR = tuple(entries), rotation_PR
        self.slots, self.positions = entries[0].shape[:2]
        self.lengths = [0] * self.slots
        self._positions_P = torch.arange(self.positions, device=rotation_PR.device)
        self._nothing_hidden = entries[0].new_zeros(1, 1, 1)
        self._cleared = 0

    def begin(self, counts: Sequence[int], first: int = 0) -> None:
        """Start a pass over `counts` new tokens of the texts from slot `first` on. Raises
        ValueError where there is no room for them."""
        index: list[tuple[int, int]] = []
        for slot, count in enumerate(counts, start=first):
            end = self.lengths[slot] + count
            if end > self.positions:
                raise ValueError(f"{end} tokens in a cache of {self.positions}")
            index += [(slot, position) for position in range(self.lengths[slot], end)]
            self.lengths[slot] = end
        self._clear(max(self.lengths[first : first + len(counts)]))
        slot_T, position_T = torch.tensor(index, device=self._rotation_PR.device).unbind(1)
        rotation_T1R = self._rotation_PR.index_select(0, position_T).unsqueeze(1)
        blocks = self._blocks(counts, first, position_T)
        self.reading = Reading(slot_T, position_T, rotation_T1R, blocks)

    def truncate(self, length: int, slot: int = 0) -> None:
        """Forget all but the first `length` tokens of a text. Raises ValueError where there are
        fewer."""
        if not 0 <= length <= self.lengths[slot]:
            raise ValueError(f"cannot cut {self.lengths[slot]} tokens to {length}")
        self.lengths[slot] = length

    def move(self, source: int, target: int) -> None:
        """Put the text of one slot in the place of another."""
        length = self.lengths[source]
        for entries_SPE in self.entries:
            entries_SPE[target, :length] = entries_SPE[source, :length]
        self.lengths[target] = length

    def _blocks(self, counts: Sequence[int], first: int, position_T: Tensor) -> tuple[Block, ...]:
        blocks, row, slot = [], 0, first
        for N, equal in groupby(counts):
            B = len(list(equal))
            rows, slots = slice(row, row + B * N), slice(slot, slot + B)
            lengths = self.lengths[slots]
            L = max(lengths)
            mask_BNL = self._nothing_hidden
            if N > 1 or min(lengths) < L:
                later_BNL = self._positions_P[:L] > position_T[rows].view(B, N, 1)
                mask_BNL = mask_BNL.new_zeros(B, N, L).masked_fill_(later_BNL, float("-inf"))
            blocks.append(Block(rows, slots, B, N, L, mask_BNL))
            row, slot = rows.stop, slots.stop
        return tuple(blocks)

    def _clear(self, length: int) -> None:
        """Make sure that what a text has not reached, but a longer one has, is numbers."""
        if length > self._cleared:
            end = min(self.positions, -(-length // _CLEARED) * _CLEARED)
            for entries_SPE in self.entries:
                entries_SPE[:, self._cleared : end].zero_()
            self._cleared = end


@dataclass(frozen=True)
class LayerCache:
    """That of one layer, number `index` of `all`."""

    all: LatentCaches
    index: int

    def append(self, latent_TC: Tensor, key_TR: Tensor) -> None:
        """Keep the new tokens of the pass."""
        reading = self.all.reading
        entries_SPE = self.all.entries[self.index]
        entries_SPE[reading.slot_T, reading.position_T] = torch.cat([latent_TC, key_TR], -1)

    def read(self, block: Block) -> Tensor:
        """All that is kept of a block's texts, a view [B, L, C + R]; what the mask hides is 0 or
        of a text before."""
        return self.all.entries[self.index][block.slots, : block.L]

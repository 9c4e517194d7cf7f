"""What generation keeps of the tokens so far: DeepSeek-V2 (arXiv 2405.04434) section 2.1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class LatentCache:
    """What one layer keeps of a text: C + R numbers per token, whatever the number of heads.

    entries_LE: [positions, C + R]; a token's normalised key-value latent [C] and, after it, the
    rotated key [R] that all heads share. The first `length` are set.
    cos_LR, sin_LR: the rotation of every position; all layers have the same tensors.
    """

    entries_LE: Tensor
    cos_LR: Tensor
    sin_LR: Tensor
    length: int = 0

    def next_rotations(self, tokens: int) -> tuple[Tensor, Tensor]:
        """cos and sin [T, R / 2] of the next T positions. Raises ValueError where there is no room
        for them."""
        rows = slice(self.length, self._end(tokens))
        return self.cos_LR[rows], self.sin_LR[rows]

    def append(self, latent_TC: Tensor, key_TR: Tensor) -> None:
        """Keep T more tokens. Raises ValueError where there is no room for them."""
        end = self._end(len(latent_TC))
        torch.cat([latent_TC, key_TR], -1, out=self.entries_LE[self.length : end])
        self.length = end

    def entries(self) -> Tensor:
        """All that is kept, a view [length, C + R]."""
        return self.entries_LE[: self.length]

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens. Raises ValueError where there are fewer."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot cut {self.length} tokens to {length}")
        self.length = length

    def _end(self, tokens: int) -> int:
        end = self.length + tokens
        if end > len(self.entries_LE):
            raise ValueError(f"{end} tokens in a cache of {len(self.entries_LE)}")
        return end

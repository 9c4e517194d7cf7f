"""The copy of a rank's state that is written while training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trainer.optim.state import Fragment

_ALIGNED = 64  # bytes


class Snapshot:
    """A CPU buffer for the fragments that this rank saves; it is kept for the next time, as large
    buffers take long to get."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def take(self, fragments: Sequence[Fragment]) -> list[Fragment]:
        """Copies of those fragments that this rank saves; they are valid until the next call."""
        mine = [fragment for fragment in fragments if fragment.saves]
        starts = [0]
        for fragment in mine:
            starts.append(starts[-1] - (-fragment.values.nbytes // _ALIGNED) * _ALIGNED)
        on_gpu = any(fragment.values.is_cuda for fragment in mine)
        if len(self._buffer) < starts[-1]:
            self._buffer = torch.empty(0, dtype=torch.uint8)  # the old one goes first
            self._buffer = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=on_gpu)
        copies = [self._copy(fragment, start) for fragment, start in zip(mine, starts)]
        if on_gpu:
            torch.cuda.synchronize()
        return copies

    def _copy(self, fragment: Fragment, start: int) -> Fragment:
        values = fragment.values
        place: Tensor = self._buffer[start : start + values.nbytes].view(values.dtype)
        place.copy_(values, non_blocking=True)
        return replace(fragment, values=place)

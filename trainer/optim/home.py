"""Where masters and moments live: beside the weights, or on the host (ZeRO-Offload, arXiv
2101.06840).

On the host, the gradients of what this rank updates come down bucket by bucket, each while the one
before is updated there, and new weights go up. A GPU copies through pinned memory, so that the host
need not wait for one to start the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainer.optim.rule import Piece


@dataclass(frozen=True)
class Home:
    """device: of masters and moments. offload: these are apart from the weights, which in a run on
    the CPU makes no difference but to memory."""

    device: torch.device
    offload: bool

    @classmethod
    def of(cls, weights: torch.device, offload: bool) -> Home:
        return cls(torch.device("cpu") if offload else weights, offload)

    def master(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """A copy of weights in this type; where these are here and that wide, themselves."""
        return self.empty(values, dtype).copy_(values) if self.offload else values.to(dtype)

    def zeros(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        return self.empty(like, dtype).zero_()

    def empty(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        pinned = self.offload and like.is_cuda
        return torch.empty(like.shape, dtype=dtype, device=self.device, pin_memory=pinned)

    def brought(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The pieces, with their gradients here; the next one's are on their way meanwhile."""
        if not self.offload:
            yield from pieces
            return
        coming: tuple[Piece, torch.cuda.Event | None] | None = None
        for piece in pieces:
            before, coming = coming, self._started(piece)
            if before is not None:
                yield _arrived(*before)
        if coming is not None:
            yield _arrived(*coming)

    def _started(self, piece: Piece) -> tuple[Piece, torch.cuda.Event | None]:
        here = self.empty(piece.gradient, piece.gradient.dtype)
        here.copy_(piece.gradient, non_blocking=True)
        event = torch.cuda.current_stream().record_event() if piece.gradient.is_cuda else None
        return replace(piece, gradient=here), event


def _arrived(piece: Piece, event: torch.cuda.Event | None) -> Piece:
    if event is not None:
        event.synchronize()
    return piece

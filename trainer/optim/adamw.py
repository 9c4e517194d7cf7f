"""AdamW, its moments in the type of the master weights or narrower."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.optim.adamw import adamw

from parallel.reduce.bucket import Bucket
from parallel.reduce.share import Cut, cut_evenly
from trainer.config.schema import OptimizerConfig
from trainer.optim.rule import Piece
from trainer.optim.state import TensorsOf

_WIDENED_AT_ONCE = 2**18  # elements: they stay in a CPU's cache
_ON_A_GPU = 2**25


@dataclass(frozen=True)
class AdamW:
    """AdamW with decoupled weight decay (arXiv 1711.05101), torch's fused kernel."""

    config: OptimizerConfig
    weight_decay: float
    kinds: tuple[str, ...] = ("exp_avg", "exp_avg_sq")

    def cut(self, bucket: Bucket, tensors_of: TensorsOf) -> Cut:
        return cut_evenly(bucket)

    def pieces(
        self, bucket: Bucket, tensors_of: TensorsOf, start: int, stop: int
    ) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        yield start, stop, (stop - start,)

    def update(self, piece: Piece, learning_rate: float, updates: Tensor) -> None:
        moments = [piece.state[kind] for kind in self.kinds]
        if moments[0].dtype == piece.master.dtype:
            self._step(piece.master, piece.gradient, moments, learning_rate, updates)
            return
        at_once = _WIDENED_AT_ONCE if piece.master.is_cpu else _ON_A_GPU
        parts = (tensor.split(at_once) for tensor in (piece.master, piece.gradient, *moments))
        for master, gradient, *narrow in zip(*parts):
            wide = [moment.to(master.dtype) for moment in narrow]
            self._step(master, gradient, wide, learning_rate, updates)
            for moment, value in zip(narrow, wide):
                moment.copy_(value)

    def _step(
        self,
        master: Tensor,
        gradient: Tensor,
        moments: list[Tensor],
        learning_rate: float,
        updates: Tensor,
    ) -> None:
        exp_avg, exp_avg_sq = moments
        adamw(
            [master],
            [gradient],
            [exp_avg],
            [exp_avg_sq],
            [],
            [updates.clone()],  # counted on in place
            fused=True,
            amsgrad=False,
            beta1=self.config.betas[0],
            beta2=self.config.betas[1],
            lr=learning_rate,
            weight_decay=self.weight_decay,
            eps=self.config.eps,
            maximize=False,
        )

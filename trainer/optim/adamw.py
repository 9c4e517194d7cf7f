"""AdamW, on every copy of a parameter alike."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from parallel.reduce.gradients import Gradients
from trainer.config.schema import OptimizerConfig


class ReplicatedAdamW:
    """AdamW with decoupled weight decay (arXiv 1711.05101) on matrices, none on norms.

    Each rank updates all that it holds, from gradients that are the same on every copy.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], gradients: Gradients, config: OptimizerConfig
    ) -> None:
        every = list(parameters)
        groups = [
            {"params": [p for p in every if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in every if p.ndim == 1], "weight_decay": 0.0},
        ]
        self._gradients, self._clip = gradients, config.clip
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            fused=True,
        )

    def zero(self) -> None:
        self._gradients.zero()

    def reduce(self) -> Tensor:
        self._gradients.reduce()
        return self._gradients.norm()

    def step(self, norm: Tensor, learning_rate: float) -> None:
        self._gradients.clip(norm, self._clip)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()

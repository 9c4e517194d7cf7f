"""AdamW, on every copy of a parameter alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from parallel.ops.accumulate import gradient_of
from parallel.reduce.gradients import Gradients
from trainer.config.schema import OptimizerConfig
from trainer.optim.state import Fragment, Weight, fragments

_WIDE = (torch.float32, torch.float64)


@dataclass
class _Moments:
    """A weight, its master and its moments. The master of a wide weight is the weight itself."""

    weight: Weight
    master: Tensor = field(init=False)
    exp_avg: Tensor = field(init=False)
    exp_avg_sq: Tensor = field(init=False)

    def __post_init__(self) -> None:
        value = self.weight.parameter.detach()
        self.master = value if value.dtype in _WIDE else value.float()
        self.exp_avg, self.exp_avg_sq = (torch.zeros_like(self.master) for _ in range(2))


class ReplicatedAdamW:
    """AdamW with decoupled weight decay (arXiv 1711.05101) on matrices, none on norms.

    Each rank updates all that it holds, from gradients that are the same on every copy.
    """

    def __init__(
        self, weights: Sequence[Weight], gradients: Gradients, config: OptimizerConfig
    ) -> None:
        self._all = [_Moments(weight) for weight in weights]
        self._gradients, self._config = gradients, config
        device = weights[0].parameter.device
        self._updates = torch.zeros((), dtype=torch.float32, device=device)

    @property
    def updates(self) -> int:
        return int(self._updates)

    def zero(self) -> None:
        self._gradients.zero()

    def reduce(self) -> Tensor:
        self._gradients.reduce()
        return self._gradients.norm()

    @torch.no_grad()
    def step(self, norm: Tensor, learning_rate: float) -> None:
        self._gradients.clip(norm, self._config.clip)
        decay = self._config.weight_decay
        self._update([m for m in self._all if m.master.ndim > 1], learning_rate, decay)
        self._update([m for m in self._all if m.master.ndim == 1], learning_rate, 0.0)
        self._updates += 1
        self._write_weights()

    def state(self) -> list[Fragment]:
        return [
            fragment
            for m in self._all
            for kind in ("master", "exp_avg", "exp_avg_sq")
            for fragment in fragments(m.weight, kind, getattr(m, kind).view(-1))
        ]

    @torch.no_grad()
    def loaded(self, updates: int) -> None:
        self._updates.fill_(updates)
        self._write_weights()

    def _update(self, chosen: Sequence[_Moments], learning_rate: float, decay: float) -> None:
        if not chosen:
            return
        adamw(
            [m.master for m in chosen],
            [gradient_of(m.weight.parameter) for m in chosen],
            [m.exp_avg for m in chosen],
            [m.exp_avg_sq for m in chosen],
            [],
            [self._updates.clone() for _ in chosen],  # counted on in place
            fused=True,
            amsgrad=False,
            beta1=self._config.betas[0],
            beta2=self._config.betas[1],
            lr=learning_rate,
            weight_decay=decay,
            eps=self._config.eps,
            maximize=False,
        )

    def _write_weights(self) -> None:
        """Weights of lower precision follow from their masters."""
        for m in self._all:
            if m.master.data_ptr() != m.weight.parameter.data_ptr():
                m.weight.parameter.copy_(m.master)

"""AdamW."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from trainer.config.schema import OptimizerConfig


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig
) -> torch.optim.AdamW:
    """AdamW with decoupled weight decay (arXiv 1711.05101) on matrices, none on norms."""
    every = list(parameters)
    groups = [
        {"params": [p for p in every if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in every if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value

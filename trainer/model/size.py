"""How many parameters a model has."""

from __future__ import annotations

import torch

from parallel.ops.ops import Ops
from trainer.config.schema import ModelConfig
from trainer.model.whole import whole_model


def parameter_counts(model: ModelConfig) -> tuple[int, int]:
    """(all, activated per token): MTP modules, embedding and head included, each parameter once."""
    with torch.device("meta"):
        whole = whole_model(model, Ops())
    total = routed = 0
    for name, parameter in whole.named_parameters():
        total += parameter.numel()
        routed += parameter.numel() if ".mlp.experts." in name else 0
    return total, total - routed + routed * model.moe.top_k // model.moe.experts

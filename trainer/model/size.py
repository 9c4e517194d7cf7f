"""How many parameters a model has."""

from __future__ import annotations

from dataclasses import replace

import torch

from parallel.expert.dispatch import LocalDispatcher
from trainer.config import Config, MeshConfig
from trainer.model.part import ModelPart
from trainer.model.partition import partition


def parameter_counts(config: Config) -> tuple[int, int]:
    """(all, activated a token): MTP modules, embedding and head included, each parameter once."""
    alone = replace(config, mesh=MeshConfig())
    parts = partition(config.model.layers, 1, config.model.mtp.depth)
    with torch.device("meta"):
        whole = ModelPart(alone, parts, [0], LocalDispatcher())
    total = routed = 0
    for name, parameter in whole.named_parameters():
        total += parameter.numel()
        routed += parameter.numel() if ".mlp.experts." in name else 0
    moe = config.model.moe
    return total, total - routed + routed * moe.top_k // moe.experts

"""Where the experts of a run are, and what a rank needs to know of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
import torch.distributed as dist

from parallel.expert.dispatch import AllToAllDispatcher, LocalDispatcher
from parallel.expert.placement import ExpertPlacement, PlacementError
from parallel.ranks.mesh import Mesh
from trainer.config.schema import ModelConfig
from trainer.model.moe import ExpertsHere
from trainer.model.partition import moe_layers

Placements: TypeAlias = Mapping[int, ExpertPlacement]
"""By layer, where its experts are."""


def trainable(given: Placements | None, model: ModelConfig, mesh: Mesh) -> Placements:
    """The placements that were given, or contiguous ones. Raises PlacementError."""
    if given is None:
        contiguous = ExpertPlacement.contiguous(model.moe.experts, mesh.expert)
        return dict.fromkeys(moe_layers(model), contiguous)
    if any(placement.redundant for placement in given.values()):
        raise PlacementError(
            "an expert is held more than once: the gradients of its copies would not be summed, so "
            "such a table is for forward passes only"
        )
    return given


def experts_here(
    placements: Placements,
    expert_rank: int,
    group: dist.ProcessGroup | None,
    device: torch.device,
) -> dict[int, ExpertsHere]:
    """By layer, the experts of this rank and the way to the others. group: of the ranks that share
    the experts; None where this rank has all of them."""
    here = {}
    for layer, placement in placements.items():
        held = placement.held[expert_rank]
        if group is None:
            here[layer] = ExpertsHere(held, LocalDispatcher())
        else:
            here[layer] = ExpertsHere(held, AllToAllDispatcher(group, placement, device))
    return here

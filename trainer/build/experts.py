"""Where the experts of a run are, and what a rank needs to know of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch

from parallel.expert.by_node import NodeDispatcher, NodeGroups
from parallel.expert.deepep import DeepEPDispatcher, open_carrier
from parallel.expert.deepep_carrier import Largest
from parallel.expert.dispatch import AllToAllDispatcher, Dispatcher, ExpertGroups, LocalDispatcher
from parallel.expert.placement import ExpertPlacement, PlacementError
from parallel.ranks.mesh import Mesh
from trainer.build.groups import GroupsOfExperts
from trainer.build.ops import make_wire
from trainer.config.derived import mesh_of
from trainer.config.schema import Config, ModelConfig
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
    groups: GroupsOfExperts,
    device: torch.device,
    config: Config,
) -> dict[int, ExpertsHere]:
    """By layer, the experts of this rank and the way to the others. groups: of the ranks that share
    the experts; None where this rank has all of them. Raises DeepEPError."""
    dispatcher_of, here = dispatchers(groups, device, config), {}
    for layer, placement in placements.items():
        held = placement.held[expert_rank]
        here[layer] = ExpertsHere(held, dispatcher_of(placement))
    return here


def dispatchers(
    groups: GroupsOfExperts, device: torch.device, config: Config
) -> Callable[[ExpertPlacement], Dispatcher]:
    """What makes the dispatcher of a layer from its placement. Raises DeepEPError."""
    wire = make_wire(config, device)
    if groups is None:
        return lambda placement: LocalDispatcher(placement.experts, wire)
    if isinstance(groups, ExpertGroups):
        return lambda placement: AllToAllDispatcher(groups, placement, device, wire)
    if isinstance(groups, NodeGroups):
        return lambda placement: NodeDispatcher(groups, placement, device, wire)
    carrier = open_carrier(groups, _largest(config), device)
    return lambda placement: DeepEPDispatcher(carrier, placement, device, wire)


def _largest(config: Config) -> Largest:
    """What a micro-batch sends at most."""
    rows = config.pipeline.micro_batches * mesh_of(config).data
    return Largest(
        tokens=config.data.global_batch * config.data.sequence_length // rows,
        dim=config.model.dim,
        top_k=config.model.moe.top_k,
        fp8=config.mesh.dispatch_dtype == "fp8",
        sms=config.cluster.communication_sms,
    )

"""Parameters: of the model, of a stage, of a rank, counted on the model's own modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from parallel.expert.dispatch import LocalDispatcher
from parallel.expert.placement import ExpertPlacement
from parallel.expert.wire import PlainWire
from parallel.ops.ops import Ops
from parallel.ranks.mesh import Mesh, RankSet
from parallel.reduce.copies import copies
from parallel.schedule.table import Schedule
from trainer.build.part import partition_of
from trainer.config.derived import mesh_of
from trainer.config.schema import Config, ModelConfig
from trainer.model.moe import ExpertsHere
from trainer.model.options import LayerOptions
from trainer.model.part import ModelPart
from trainer.model.partition import Partition, moe_layers
from trainer.model.whole import whole_model

EXPERTS = ".mlp.experts."


@dataclass(frozen=True)
class ModelParameters:
    """main: of the model without MTP modules. mtp: of these, what they share with it not counted.
    activated: of the main model that one token meets, the embedding not counted, of which it meets
    a row."""

    main: int
    mtp: int
    activated: int


@dataclass(frozen=True)
class RankParameters:
    """Of one pipeline rank. copies: by set of world ranks that hold the same parameters, how many
    values these are."""

    copies: Mapping[RankSet, int]

    @property
    def total(self) -> int:
        return sum(self.copies.values())

    @property
    def share(self) -> float:
        """Of each rank, where copies share what they hold evenly."""
        return sum(count / len(ranks) for ranks, count in self.copies.items())


def model_parameters(model: ModelConfig) -> ModelParameters:
    """Equal to the released checkpoints' tensors, router biases not counted."""
    with torch.device("meta"):
        whole = whole_model(model, Ops())
    main = mtp = routed = 0
    for name, parameter in whole.named_parameters():
        if name.startswith("layers.") and int(name.split(".")[1]) >= model.layers:
            mtp += parameter.numel()
            continue
        main += parameter.numel()
        routed += parameter.numel() if EXPERTS in name else 0
    idle = routed - routed * model.moe.top_k // model.moe.experts
    return ModelParameters(main, mtp, main - idle - model.vocab_size * model.dim)


def stage_parameters(config: Config, schedule: Schedule) -> list[int]:
    """Of each stage, all experts included; what two stages use counts in the first of them."""
    partition, counts = partition_of(config, schedule), Counter[int]()
    with torch.device("meta"):
        whole = whole_model(config.model, Ops())
    for name, parameter in whole.named_parameters():
        counts[min(partition.home(name).stages)] += parameter.numel()
    return [counts[stage] for stage in range(schedule.stages)]


def rank_parameters(config: Config, schedule: Schedule, pipeline_rank: int) -> RankParameters:
    """Of the first rank at this place of a pipeline, counted on its part of the model."""
    mesh, partition = mesh_of(config), partition_of(config, schedule)
    stages = {stage for _, stage in schedule.stages_of(pipeline_rank)}
    counts: Counter[RankSet] = Counter()
    for name, parameter in _part(config, mesh, partition, stages).named_parameters():
        counts[copies(partition.home(name), mesh, schedule.placement, 0)] += parameter.numel()
    return RankParameters(counts)


def _part(config: Config, mesh: Mesh, partition: Partition, stages: set[int]) -> ModelPart:
    """The modules of these stages, without memory, as the first expert rank holds them."""
    held = ExpertPlacement.contiguous(config.model.moe.experts, mesh.expert).held[0]
    experts = dict.fromkeys(
        moe_layers(config.model), ExpertsHere(held, LocalDispatcher(len(held), PlainWire()))
    )
    with torch.device("meta"):
        options = LayerOptions(config.model, config.recompute, Ops(), config.data.sequence_length)
        return ModelPart(options, partition, stages, experts)

"""Which layers a rank has, and their modules, from the config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from parallel.context.exchange import ContextGroup
from parallel.expert.router import Choose, choose
from parallel.schedule.table import Schedule
from trainer.build.ops import make_ops
from trainer.config.schema import Config
from trainer.model.moe import ExpertsHere
from trainer.model.options import LayerOptions
from trainer.model.part import ModelPart
from trainer.model.partition import Partition, partition_layers


def partition_of(config: Config, schedule: Schedule) -> Partition:
    """The layers of each stage of a config's table."""
    return partition_layers(
        config.model.layers,
        schedule.stages,
        config.model.mtp.depth,
        config.pipeline.layers_per_stage,
    )


def make_part(
    config: Config,
    partition: Partition,
    stages: Iterable[int],
    experts: Mapping[int, ExpertsHere],
    device: torch.device,
    choose: Choose = choose,
    context: ContextGroup | None = None,
) -> ModelPart:
    """The modules of these stages: weights on meta, without memory, buffers on `device`. context:
    the ranks that share sequences. Raises AttentionError or ConfigError where the device cannot run
    what run.attention or run.kernels asks."""
    ops, length = make_ops(config, device), config.data.sequence_length
    options = LayerOptions(config.model, config.recompute, ops, length, choose, context)
    part = ModelPart(options, partition, stages, experts)
    for module in part.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return part

"""Which layers a rank has, and their modules, from the config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from parallel.expert.router import Choose, choose
from parallel.ops.attention_kernel import AttentionShape, attention_kernel
from parallel.ops.fp8.ops import Fp8Ops
from parallel.ops.kernels import Kernels
from parallel.ops.ops import Ops
from parallel.ops.precision import PRECISIONS
from parallel.schedule.table import Schedule
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
) -> ModelPart:
    """The modules of these stages: weights on meta, without memory, buffers on `device`. Raises
    AttentionError where that cannot run the kernel of run.attention."""
    kernels = Kernels.compiled() if config.run.compile else Kernels()
    precision, meta = PRECISIONS[config.precision.parameters], torch.device("meta")
    kind = Fp8Ops if config.precision.linear == "fp8" else Ops
    attention = attention_kernel(config.run.attention, _attention_shape(config), device)
    ops = kind(precision, kernels=kernels, weights_on=meta, attention_kernel=attention)
    options = LayerOptions(config.model, config.recompute, ops, config.data.sequence_length, choose)
    part = ModelPart(options, partition, stages, experts)
    for module in part.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return part


def _attention_shape(config: Config) -> AttentionShape:
    c, dtype = config.model.attention, PRECISIONS[config.precision.parameters].parameters
    return AttentionShape(c.heads, c.nope_head_dim + c.rope_head_dim, c.v_head_dim, dtype)

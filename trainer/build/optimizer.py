"""The gradients and the optimizer of a rank, from the config."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
import torch.distributed as dist

from parallel.ranks.mesh import RankSet
from parallel.reduce.bucket import Bucket
from parallel.reduce.gradients import Gradients, make_gradients
from parallel.reduce.share import Cut
from trainer.config.schema import OptimizerConfig
from trainer.model.names import released_names
from trainer.model.part import ModelPart
from trainer.model.partition import Partition
from trainer.optim.adamw import AdamW
from trainer.optim.flat import FlatOptimizer
from trainer.optim.muon import Muon, is_for_muon
from trainer.optim.optimizer import Optimizer
from trainer.optim.rule import Rule
from trainer.optim.state import ReleasedTensor

_MOMENTS = {"float32": None, "bfloat16": torch.bfloat16}


def make_optimizer(
    part: ModelPart,
    copies_of: Mapping[str, RankSet],
    groups: Mapping[RankSet, dist.ProcessGroup],
    rank: int,
    partition: Partition,
    held: Collection[int],
    config: OptimizerConfig,
) -> tuple[Gradients, Optimizer]:
    """Moves the weights of `part` into flat buffers. copies_of: by parameter, the ranks that hold
    it; groups: by such a set. held: the stages of this rank."""
    parameters = dict(part.named_parameters())
    tensors_of = {name: _tensors(part, name) for name in parameters}

    def stages_of(name: str) -> frozenset[int]:
        return partition.home(name).stages

    if config.zero == "deepspeed" and dist.is_initialized():  # one process has nothing to share
        from trainer.optim.deepspeed_zero import DeepSpeedAdamW

        sharded = DeepSpeedAdamW(
            parameters, copies_of, groups, rank, tensors_of, stages_of, held, config
        )
        return sharded.gradients, sharded
    rules: dict[str, Rule] = {
        "matrix": AdamW(config, config.weight_decay),
        "muon": Muon(config),
        "norm": AdamW(config, weight_decay=0.0),
    }

    def kind_of(name: str) -> str:
        shape = parameters[name].shape
        if config.name == "muon" and is_for_muon(name, shape):
            return "muon"
        return "matrix" if len(shape) > 1 else "norm"

    def cut(bucket: Bucket) -> Cut | None:
        return None if config.zero == "off" else rules[bucket.kind].cut(bucket, tensors_of)

    gradients = make_gradients(parameters, copies_of, groups, rank, kind_of, cut, stages_of, held)
    moments = _MOMENTS[config.moments]
    return gradients, FlatOptimizer(gradients, tensors_of, rules, config.clip, moments)


def _tensors(part: ModelPart, name: str) -> tuple[ReleasedTensor, ...]:
    """What a parameter is in the released checkpoints, in the order of its elements."""
    tensors = released_names(part, name, part.get_parameter(name).data)
    return tuple(ReleasedTensor(name, tuple(tensor.shape)) for name, tensor in tensors)

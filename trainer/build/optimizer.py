"""The gradients and the optimizer of a rank, from the config."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
import torch.distributed as dist
from torch import nn

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
    device: torch.device,
    fill: Callable[[], None],
) -> tuple[Gradients, Optimizer]:
    """Gives the weights of `part`, which are on meta, their memory on `device`, in flat buffers;
    then `fill` sets them, before anything is made of their values. copies_of: by parameter, the
    ranks that hold it; groups: by such a set. held: the stages of this rank."""
    parameters = dict(part.named_parameters())
    tensors_of = {name: _tensors(part, name) for name in parameters}

    def stages_of(name: str) -> frozenset[int]:
        return partition.home(name).stages

    if config.zero == "deepspeed" and dist.is_initialized():  # one process has nothing to share
        from trainer.optim.deepspeed_zero import DeepSpeedAdamW

        for name, parameter in parameters.items():
            parameters[name] = nn.Parameter(torch.empty_like(parameter, device=device))
        put_parameters(part, parameters)
        fill()
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

    gradients = make_gradients(
        parameters, copies_of, groups, rank, kind_of, cut, stages_of, held, device
    )
    for share in gradients.shares:
        put_parameters(part, dict(zip(share.bucket.names, share.bucket.parameters)))
    fill()
    moments = _MOMENTS[config.moments]
    return gradients, FlatOptimizer(
        gradients, tensors_of, rules, config.clip, moments, config.offload
    )


def put_parameters(part: ModelPart, parameters: Mapping[str, nn.Parameter]) -> None:
    """In the place of those that have these names."""
    for name, parameter in parameters.items():
        module, _, leaf = name.rpartition(".")
        part.get_submodule(module).register_parameter(leaf, parameter)


def _tensors(part: ModelPart, name: str) -> tuple[ReleasedTensor, ...]:
    """What a parameter is in the released checkpoints, in the order of its elements."""
    tensors = released_names(part, name, part.get_parameter(name).data)
    return tuple(ReleasedTensor(name, tuple(tensor.shape)) for name, tensor in tensors)

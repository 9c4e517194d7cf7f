"""The optimizer of a rank, from the config."""

from __future__ import annotations

from collections.abc import Mapping

from parallel.ranks.mesh import RankSet
from parallel.reduce.gradients import Gradients
from trainer.config.schema import OptimizerConfig
from trainer.model.names import released_names
from trainer.model.part import ModelPart
from trainer.optim.adamw import ReplicatedAdamW
from trainer.optim.optimizer import Optimizer
from trainer.optim.state import ReleasedTensor, Weight


def make_optimizer(
    part: ModelPart,
    gradients: Gradients,
    copies_of: Mapping[str, RankSet],
    rank: int,
    config: OptimizerConfig,
) -> Optimizer:
    """copies_of: by parameter, the ranks that hold it."""
    weights = [
        Weight(name, parameter, _tensors(part, name), saves=copies_of[name][0] == rank)
        for name, parameter in part.named_parameters()
    ]
    return ReplicatedAdamW(weights, gradients, config)


def _tensors(part: ModelPart, name: str) -> tuple[ReleasedTensor, ...]:
    """What a parameter is in the released checkpoints, in the order of its elements."""
    tensors = released_names(part, name, part.get_parameter(name).data)
    return tuple(ReleasedTensor(name, tuple(tensor.shape)) for name, tensor in tensors)

"""What a whole recipe costs: GPU-hours, days, dollars and energy, of pre-training with its batch
ramp, of context extension, of post-training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.config.derived import mesh_of, schedule_of
from trainer.config.schema import ClusterConfig, Config
from trainer.plan.datasheets import Machine
from trainer.plan.parameters import RankParameters
from trainer.plan.step_time import step_time
from trainer.plan.traffic import tokens_of_micro_batch
from trainer.recipe.recipe import Recipe


@dataclass(frozen=True)
class Stretch:
    """Steps that take equally long. sequence_length: tokens of a sequence."""

    steps: int
    sequences: int
    sequence_length: int
    step_seconds: float

    @property
    def tokens(self) -> int:
        return self.steps * self.sequences * self.sequence_length


@dataclass(frozen=True)
class RunCost:
    """pre_training, context_extension: stretch by stretch. gpus: of the run."""

    pre_training: tuple[Stretch, ...]
    context_extension: tuple[Stretch, ...]
    post_training_gpu_hours: float
    gpus: int

    @property
    def gpu_hours(self) -> dict[str, float]:
        """Of each part, and total."""
        parts = {
            "pre_training": self._hours(self.pre_training),
            "context_extension": self._hours(self.context_extension),
            "post_training": self.post_training_gpu_hours,
        }
        return {**parts, "total": sum(parts.values())}

    @property
    def days(self) -> float:
        return self.gpu_hours["total"] / self.gpus / 24

    @property
    def gpu_hours_per_trillion_tokens(self) -> float:
        """Of pre-training."""
        tokens = sum(stretch.tokens for stretch in self.pre_training)
        return self._hours(self.pre_training) / tokens * 1e12

    def dollars(self, cluster: ClusterConfig) -> float:
        return self.gpu_hours["total"] * cluster.price

    def mwh(self, cluster: ClusterConfig, machine: Machine) -> float:
        watts = (machine.watts + machine.overhead_watts) * cluster.pue
        return self.gpu_hours["total"] * watts / 1e6

    def _hours(self, stretches: Sequence[Stretch]) -> float:
        return sum(each.steps * each.step_seconds for each in stretches) * self.gpus / 3600


def run_cost(config: Config, ranks: Sequence[RankParameters], machine: Machine) -> RunCost:
    """Of the config's run and of what follows it by its `plan`.

    Sequences longer than those of pre-training are counted in micro-batches of as many tokens as
    its own, each of which sees all that comes before it: attention costs its FLOPs, and dividing a
    sequence among ranks nothing.
    """
    recipe, mesh, length = Recipe(config), mesh_of(config), config.data.sequence_length
    row = config.data.global_batch // config.pipeline.micro_batches
    seconds: dict[tuple[int, int], float] = {}

    def step(micro_batches: int, sequence_length: int) -> float:
        key = micro_batches, sequence_length
        if key not in seconds:
            schedule = schedule_of(config, micro_batches)
            seconds[key] = step_time(config, schedule, ranks, machine, sequence_length).seconds
        return seconds[key]

    pre_training = tuple(
        Stretch(each.steps, each.sequences, length, step(each.sequences // row, length))
        for each in recipe.plan.stretches
    )
    extension = []
    for text in config.plan.context_extension or ():
        steps, sequences, longer = map(int, re.findall(r"\d+", text))
        tokens = mesh.data * tokens_of_micro_batch(config, mesh)
        micro_batches = -(-sequences * longer // tokens)
        extension.append(Stretch(steps, sequences, longer, step(micro_batches, longer)))
    hours = config.plan.post_training_gpu_hours
    return RunCost(pre_training, tuple(extension), hours, mesh.world)

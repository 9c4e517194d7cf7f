"""A plan: what a run needs and how fast it is, put together from the rest of this room."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from parallel.schedule.table import Schedule
from trainer.config.derived import mesh_of, schedule_of
from trainer.config.schema import Config
from trainer.config.validate import validate
from trainer.plan.datasheets import Machine, machine_of
from trainer.plan.flops import training_flops
from trainer.plan.memory import RankMemory, memory_by_rank
from trainer.plan.overlap_rule import OverlapRule, overlap_rule
from trainer.plan.parameters import (
    ModelParameters,
    RankParameters,
    model_parameters,
    rank_parameters,
)
from trainer.plan.plannable import require_plannable
from trainer.plan.run_cost import RunCost, run_cost
from trainer.plan.step_time import StepTime, step_time
from trainer.plan.step_traffic import step_traffic
from trainer.plan.traffic import Bytes

SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Rates:
    """Of steps with the config's batch. mfu: by convention, of the main model without MTP, as
    DeepSeek states it; in a plan of bfloat16's peak."""

    tokens_per_step: int
    tokens_per_second_per_gpu: float
    tokens_per_day: float
    tflops_per_gpu: dict[str, float]
    mfu: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """ranks: by pipeline rank. rule: where there are all-to-alls."""

    config: Config
    schedule: Schedule
    machine: Machine
    parameters: ModelParameters
    ranks: tuple[RankParameters, ...]
    step: StepTime
    rates: Rates
    rule: OverlapRule | None
    cost: RunCost

    @cached_property
    def memory(self) -> tuple[RankMemory, ...]:
        """By pipeline rank; passes are run for it, when it is first asked for."""
        return memory_by_rank(self.config, self.schedule, self.machine)

    @property
    def traffic(self) -> tuple[dict[str, Bytes], ...]:
        """What each pipeline rank sends in a step, by kind."""
        return tuple(
            step_traffic(self.config, self.schedule, parameters, rank, self.machine)
            for rank, parameters in enumerate(self.ranks)
        )

    @property
    def fits(self) -> bool:
        """Whether every rank does, its margin included."""
        return all(rank.fits(self.machine) for rank in self.memory)


def make_plan(config: Config) -> Plan:
    """The plan of a config, for the number of ranks that its mesh asks for.

    Raises ConfigError, or ScheduleError, for what cannot run or cannot be planned.
    """
    mesh, machine = mesh_of(config), machine_of(config.cluster)
    validate(config, mesh.world)
    require_plannable(config)
    schedule = schedule_of(config)
    ranks = tuple(rank_parameters(config, schedule, rank) for rank in range(schedule.ranks))
    step = step_time(config, schedule, ranks, machine)
    return Plan(
        config=config,
        schedule=schedule,
        machine=machine,
        parameters=model_parameters(config.model),
        ranks=ranks,
        step=step,
        rates=rates(config, step.seconds, machine.bf16),
        rule=overlap_rule(config, mesh, machine),
        cost=run_cost(config, ranks, machine),
    )


def rates(config: Config, step_seconds: float, peak: float) -> Rates:
    """Of a step that takes so long. peak: FLOP/s of one rank, of which MFU is the share."""
    world, length = mesh_of(config).world, config.data.sequence_length
    tokens = config.data.global_batch * length
    per_gpu = tokens / step_seconds / world
    flops = {
        name: per_gpu * training_flops(config.model, length, causal=name == "causal", mtp=False)
        for name in ("causal", "non_causal")
    }
    return Rates(
        tokens_per_step=tokens,
        tokens_per_second_per_gpu=per_gpu,
        tokens_per_day=tokens / step_seconds * SECONDS_PER_DAY,
        tflops_per_gpu={name: value / 1e12 for name, value in flops.items()},
        mfu={name: value / peak for name, value in flops.items()},
    )

"""What the planner says of the config that is measured.

On CUDA its plan. On a CPU, which has no datasheet, the schedule is simulated with costs of its own
stages, measured after the steps, without messages' transfer; the end of a step is that of the
measured steps.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Literal

import torch

from parallel.study.simulate import simulate
from trainer.bench.measured_costs import MeasuredCosts
from trainer.config.derived import schedule_of
from trainer.config.schema import Config
from trainer.plan.datasheets import machine_of
from trainer.plan.memory import memory_by_rank
from trainer.plan.plan import make_plan
from trainer.plan.step_time import StepParts, ended, mean_parts, split


@dataclass(frozen=True)
class Prediction:
    """source: of the costs. seconds: of a step. parts: mean over pipeline ranks."""

    source: str
    seconds: float
    parts: StepParts


def planned(config: Config) -> Prediction:
    """By the plan. Raises ConfigError, or ScheduleError, for what cannot be planned."""
    step = make_plan(config).step
    source = f"plan of {config.cluster.gpu}, costs by {config.plan.costs}"
    return Prediction(source, step.seconds, step.parts)


def simulated(found: MeasuredCosts, end: float) -> Prediction:
    """end: seconds of the sums of gradients and the optimizer."""
    schedule = found.timeline.schedule
    timeline = ended(simulate(schedule, found.costs), [end] * schedule.ranks)
    source = "simulation with the measured costs of the stages; the optimizer's time is measured"
    return Prediction(source, timeline.makespan, mean_parts(split(timeline)))


def planned_memory(config: Config, device: torch.device) -> list[int]:
    """Bytes of tensors by pipeline rank, by the plan, on this kind of device; made in a process of
    its own, since a plan opens groups of ranks that are not there."""
    kind: Literal["cuda", "cpu"] = "cuda" if device.type == "cuda" else "cpu"
    config = replace(config, run=replace(config.run, device=kind))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_memory_of, config).result()


def _memory_of(config: Config) -> list[int]:
    ranks = memory_by_rank(config, schedule_of(config), machine_of(config.cluster))
    return [rank.needed for rank in ranks]

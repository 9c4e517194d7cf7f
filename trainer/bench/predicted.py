"""What the planner says of the config that is measured.

On CUDA its plan. On a CPU, which has no datasheet, the schedule is simulated with costs of its own
stages, measured after the steps, without messages' transfer; the end of a step is that of the
measured steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from parallel.study.simulate import simulate
from trainer.bench.measured_costs import MeasuredCosts
from trainer.config.schema import Config
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

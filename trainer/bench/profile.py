"""All that is measured of a config's steps, and what is predicted of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from parallel.ranks.together import gather
from trainer.bench.exchange_times import Mode
from trainer.bench.measured_costs import MeasuredCosts, measure_costs
from trainer.bench.peak import Peak, peak_of
from trainer.bench.predicted import Prediction, planned, planned_memory, simulated
from trainer.bench.throughput import Measured, Trial, measure
from trainer.build.layout import Layout
from trainer.config.schema import Config
from trainer.plan.plan import Rates, rates
from trainer.run.step_meter import peak_memory


@dataclass(frozen=True)
class Memory:
    """Most of each rank up to the end of the steps, bytes. used: resident, with Python and its
    libraries, on a CPU; of tensors on CUDA. reserved: by the allocator on CUDA, else None."""

    used: list[int]
    reserved: list[int] | None


@dataclass(frozen=True)
class Profile:
    """What rank 0 knows in the end. modes: in the order of the trial; the first is what is
    predicted. costs: measured, on a CPU. planned_memory: bytes of tensors by pipeline rank, where
    asked for."""

    config: Config
    modes: dict[Mode, Measured]
    peak: Peak
    memory: Memory
    predicted: Prediction
    costs: MeasuredCosts | None
    planned_memory: list[int] | None

    @property
    def first(self) -> Measured:
        return next(iter(self.modes.values()))

    @property
    def measured_over_predicted(self) -> float:
        """Of the step, its median."""
        return self.first.median_seconds / self.predicted.seconds

    def rates(self, seconds: float) -> Rates:
        """Of steps that take so long."""
        return rates(self.config, seconds, self.peak.flops)


def profile(
    layout: Layout, trial: Trial, cost_steps: int, cost_warmup: int, plan_memory: bool
) -> Profile | None:
    """On rank 0, None on the others. cost_steps, cost_warmup: of each kind, for the costs of stages
    on a CPU. Collective."""
    config, on_cuda = layout.config, layout.device.type == "cuda"
    plan = None
    if on_cuda:
        plan = planned(config)  # first: the config may be one that cannot be planned
        torch.cuda.reset_peak_memory_stats(layout.device)
    peak = peak_of(layout)
    modes = measure(layout, trial)
    memory = _memory(layout.device)
    costs = None if on_cuda else measure_costs(layout, cost_steps, cost_warmup)
    if modes is None:
        return None
    if costs is not None:
        plan = simulated(costs, modes[trial.modes[0]].parts.optimizer)
    assert plan is not None
    planned_bytes = planned_memory(config, layout.device) if plan_memory else None
    return Profile(config, modes, peak, memory, plan, costs, planned_bytes)


def _memory(device: torch.device) -> Memory:
    used = gather(round(peak_memory(device)))
    if device.type != "cuda":
        return Memory(used, None)
    return Memory(used, gather(torch.cuda.max_memory_reserved(device)))

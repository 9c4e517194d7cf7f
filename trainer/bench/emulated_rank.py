"""The steps of one rank of a config, alone on this machine: its stages, kernels and program are
real, the other ranks are emulated."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from parallel.ranks.process import Process
from trainer.bench.balanced_routing import choose_balanced
from trainer.bench.emulated_world import emulated_world
from trainer.bench.exchange_times import StepTimes, account, exchanges
from trainer.bench.peak import Peak, peak_of
from trainer.bench.predicted import planned, planned_memory
from trainer.bench.throughput import RankSteps, Trial, prepared, run_steps
from trainer.bench.throughput_report import PLACES
from trainer.build.layout import Layout
from trainer.config.derived import mesh_of
from trainer.config.schema import Config
from trainer.errors import ConfigError
from trainer.plan.datasheets import machine_of
from trainer.plan.plan import Rates, rates
from trainer.plan.traffic import NETWORK_EFFICIENCY, NVLINK_EFFICIENCY
from trainer.run.step_meter import peak_memory

_ROOM = 0.8  # of a machine's memory


@dataclass(frozen=True)
class Emulated:
    """rate: of links, bytes per second. seconds: of each step. rates: as if all ranks took the
    median. times: of its mean step. memory: the most, bytes, resident on a CPU and of tensors on
    CUDA; planned: of tensors, by the plan. predicted: seconds of a step by the plan, on CUDA."""

    rank: int
    world: int
    rate: float
    seconds: list[float]
    rates: Rates
    peak: Peak
    times: StepTimes
    memory: float
    planned: int
    predicted: float | None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def emulate(config: Config, rank: int, trial: Trial, rate: float | None) -> Emulated:
    """rate: of links, bytes per second; of the datasheet's where None. Raises ConfigError for a
    rank that there is not, or that is too large for this machine's memory."""
    mesh = mesh_of(config)
    if mesh.world == 1 or not 0 <= rank < mesh.world:
        raise ConfigError(
            f"--emulate-rank {rank}: the config has {mesh.world} ranks, numbered from 0"
            + (": there is nothing to emulate" if mesh.world == 1 else "")
        )
    if config.mesh.dispatch == "deepep":  # whose buffers need the other ranks
        config = replace(config, mesh=replace(config.mesh, dispatch="all_to_all"))
    process = Process(rank, mesh.world, rank, mesh.world)
    device = Process().device(config.run.device)
    place = mesh.coordinate(rank).pipeline
    _require_room(planned_memory(config, torch.device("cuda"))[place], device)  # computes nothing
    needed = planned_memory(config, device)[place]
    rate = rate or _rate_of(config)
    with emulated_world(rank, mesh.world, rate):
        layout = prepared(config, process, trial, choose_balanced)
        steps = run_steps(layout, trial)
        peak = peak_of(layout)
        return _found(layout, trial, rate, steps, peak, needed)


def _found(
    layout: Layout, trial: Trial, rate: float, steps: RankSteps, peak: Peak, needed: int
) -> Emulated:
    config, process, device = layout.config, layout.process, layout.device
    seconds = [window.end - window.start for window in steps.windows]
    starts = [exchange.start for exchange in exchanges(steps.events)]
    return Emulated(
        rank=process.rank,
        world=process.world,
        rate=rate,
        seconds=seconds,
        rates=rates(config, statistics.median(seconds), peak.flops),
        peak=peak,
        times=account(steps.events, starts, steps.windows, trial.modes[0]),
        memory=peak_memory(device),
        planned=needed,
        predicted=planned(config).seconds if device.type == "cuda" else None,
    )


def _rate_of(config: Config) -> float:
    """Of the network where the experts of a layer are on several nodes, else of NVLink, as a plan
    counts them."""
    machine = machine_of(config.cluster)
    if mesh_of(config).expert > machine.gpus_per_node:
        return machine.network * NETWORK_EFFICIENCY
    return machine.nvlink * NVLINK_EFFICIENCY


def _require_room(needed: int, device: torch.device) -> None:
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        there = round(_ROOM * free)
    if needed > there:
        raise ConfigError(
            f"--emulate-rank: the rank needs {needed / 2**30:.1f} GiB by its plan, and there are "
            f"{there / 2**30:.1f} for it here: choose a smaller config, or count what it does with "
            "launch/train.py --dry-run"
        )


def as_json(found: Emulated) -> dict[str, Any]:
    """Keys stay: scripts read them."""
    total = found.times.total(*PLACES)
    return {
        "emulated_rank": found.rank,
        "world": found.world,
        "link_bytes_per_second": found.rate,
        "step_seconds": {"median": found.median, "all": found.seconds},
        "predicted_seconds": found.predicted,
        "tflops_per_rank": found.rates.tflops_per_gpu,
        "mfu": found.rates.mfu,
        "all_to_alls": {**asdict(total), "hidden": total.hidden},
        "memory_gib": {"peak": found.memory / 2**30, "planned": found.planned / 2**30},
    }


def show(found: Emulated) -> None:
    """A table for a person."""
    title = f"rank {found.rank} of {found.world}, emulated; links of {found.rate / 1e9:,.3g} GB/s"
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in _rows(found):
        table.add_row(name, value)
    (Console() if Console().is_terminal else Console(width=120)).print(table)


def _rows(found: Emulated) -> Iterator[tuple[str, str]]:
    yield "step, median", f"{found.median:.4f} s of {len(found.seconds)}"
    if found.predicted is not None:
        ratio = found.median / found.predicted
        yield "step, predicted", f"{found.predicted:.4f} s; measured / predicted {ratio:.3f}"
    for name, share in found.rates.mfu.items():
        rate = found.rates.tflops_per_gpu[name]
        yield f"MFU, {name}", f"{share:.1%} of {found.peak.source}; {rate:.3g} TFLOP/s"
    total = found.times.total(*PLACES)
    hidden = "" if total.hidden is None else f"; hidden {total.hidden:.0%}"
    yield (
        "all-to-alls",
        (
            f"{total.number:.0f} per step, in flight {total.in_flight:.4f} s, waited "
            f"{total.waited:.4f} s{hidden}"
        ),
    )
    yield (
        "memory",
        f"{found.memory / 2**30:.2f} GiB; {found.planned / 2**30:.2f} of tensors planned",
    )

"""The steps of one rank of a config, alone on this machine: its stages, kernels and program are
real, the other ranks are emulated."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from parallel.ranks.process import Process
from trainer.bench.balanced_routing import choose_balanced
from trainer.bench.emulated_world import emulated_world
from trainer.bench.exchange_times import StepTimes, account, exchanges
from trainer.bench.gaps import Gap, largest_gaps
from trainer.bench.links import Links
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
from trainer.run.step_meter import peak_memory

_ROOM = 0.8  # of a machine's memory


@dataclass(frozen=True)
class Emulated:
    """links: in words. seconds: of each step. rates: as if all ranks took the median. times: of its
    mean step. memory: the most, bytes, resident on a CPU and of tensors on CUDA; planned: of
    tensors, by the plan. predicted: seconds of a step by the plan, on CUDA. gaps: the largest of
    one more step, which is profiled."""

    rank: int
    world: int
    links: str
    seconds: list[float]
    rates: Rates
    peak: Peak
    times: StepTimes
    memory: float
    planned: int
    predicted: float | None
    gaps: list[Gap]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Room:
    """Bytes that a rank needs by its plan, and that there are for it here."""

    needed: int
    there: int

    @property
    def enough(self) -> bool:
        return self.needed <= self.there

    def describe(self) -> str:
        return (
            f"the rank needs {self.needed / 2**30:.1f} GiB by its plan, and there are "
            f"{self.there / 2**30:.1f} for it here"
        )


def room_for(config: Config, rank: int) -> Room:
    """Raises ConfigError for a rank that there is not, or that is the only one."""
    mesh = mesh_of(config)
    if mesh.world == 1 or not 0 <= rank < mesh.world:
        raise ConfigError(
            f"--emulate-rank {rank}: the config has {mesh.world} ranks, numbered from 0"
            + (": there is nothing to emulate" if mesh.world == 1 else "")
        )
    needed = planned_memory(config, torch.device("cuda"))  # computes nothing
    device = Process().device(config.run.device)
    return Room(needed[mesh.coordinate(rank).pipeline], _there(device))


def emulate(config: Config, rank: int, trial: Trial, rate: float | None) -> Emulated:
    """rate: of links, bytes per second; of the datasheet's where None. There must be room for the
    rank."""
    config, mesh = without_deepep(config), mesh_of(config)
    process = Process(rank, mesh.world, rank, mesh.world)
    device = Process().device(config.run.device)
    needed = planned_memory(config, device)[mesh.coordinate(rank).pipeline]
    links = Links.of(config.cluster, rate)
    with emulated_world(rank, mesh.world, links):
        layout = prepared(config, process, trial, choose_balanced)
        steps = run_steps(layout, trial)
        peak = peak_of(layout)
        found = _found(layout, trial, steps, peak, needed)
        return replace(found, links=links.describe(), gaps=largest_gaps(layout))


def without_deepep(config: Config) -> Config:
    """DeepEP's buffers need the other ranks. hierarchical sends as much between nodes, where the
    ranks are on several."""
    if config.mesh.dispatch != "deepep" and config.plan.dispatch != "deepep":
        return config
    here, ranks = machine_of(config.cluster).gpus_per_node, config.mesh.expert
    nodes = ranks % here == 0 and 1 < here < ranks
    dispatch: Literal["hierarchical", "all_to_all"] = "hierarchical" if nodes else "all_to_all"
    return replace(
        config,
        mesh=replace(config.mesh, dispatch=dispatch),
        cluster=replace(config.cluster, gpus_per_node=here),
        plan=replace(config.plan, dispatch=dispatch),
    )


def _found(layout: Layout, trial: Trial, steps: RankSteps, peak: Peak, needed: int) -> Emulated:
    config, process, device = layout.config, layout.process, layout.device
    seconds = [window.end - window.start for window in steps.windows]
    starts = [exchange.start for exchange in exchanges(steps.events)]
    return Emulated(
        rank=process.rank,
        world=process.world,
        links="",
        seconds=seconds,
        rates=rates(config, statistics.median(seconds), peak.flops),
        peak=peak,
        times=account(steps.events, starts, steps.windows, trial.modes[0]),
        memory=peak_memory(device),
        planned=needed,
        predicted=planned(config).seconds if device.type == "cuda" else None,
        gaps=[],
    )


def _there(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return round(_ROOM * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def as_json(found: Emulated) -> dict[str, Any]:
    """Keys stay: scripts read them."""
    total = found.times.total(*PLACES)
    return {
        "emulated_rank": found.rank,
        "world": found.world,
        "links": found.links,
        "step_seconds": {"median": found.median, "all": found.seconds},
        "predicted_seconds": found.predicted,
        "tflops_per_rank": found.rates.tflops_per_gpu,
        "mfu": found.rates.mfu,
        "all_to_alls": {**asdict(total), "hidden": total.hidden},
        "memory_gib": {"peak": found.memory / 2**30, "planned": found.planned / 2**30},
        "largest_gaps": [asdict(gap) for gap in found.gaps],
    }


def show(found: Emulated) -> None:
    """A table for a person."""
    title = f"rank {found.rank} of {found.world}, emulated; {found.links}"
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
    for number, gap in enumerate(found.gaps, 1):
        name = f"gap {number}, after {gap.start:,.1f} ms"
        yield name, f"{gap.milliseconds:.2f} ms in {gap.during or 'no range'}, after {gap.after}"
    yield (
        "memory",
        f"{found.memory / 2**30:.2f} GiB; {found.planned / 2**30:.2f} of tensors planned",
    )

"""What it takes to start a run before it reads its text: process groups, sockets, threads, seconds
and memory, on the ranks of this machine or on one rank of a world that torch fakes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from parallel.ranks.process import Process, join, leave
from parallel.ranks.together import gather
from trainer.build.layout import build
from trainer.checkpoint.state.checkpoints import Checkpoints
from trainer.config.derived import mesh_of, schedule_of
from trainer.config.schema import Config
from trainer.run.step_meter import peak_memory

T = TypeVar("T")


@dataclass(frozen=True)
class Start:
    """Of the rank with the most, each.

    groups: calls that make a process group. sockets, threads: open in the end. join, build: seconds
    from when the last rank is there: until the world is connected; from then until groups, weights
    and optimizer are. peak: bytes of memory.
    """

    ranks: int
    groups: int
    sockets: int
    threads: int
    join: float
    build: float
    peak: float


def measure_start(config: Config, process: Process) -> Start:
    """Start on this rank; the same result on every rank. Collective over the world."""
    device, arrived = process.device(config.run.device), time.time()
    join(process, device, timedelta(seconds=config.run.timeout), "env://")
    joined = time.time()
    last = max(gather(arrived))  # ranks of one machine have one clock

    def whole() -> Checkpoints:
        return Checkpoints(build(config, process, device), Path, 0)

    seconds, kept = _timed(whole)
    mine = Start(
        ranks=process.world,
        groups=dist.get_pg_count() if dist.is_initialized() else 0,
        sockets=_sockets(),
        threads=len(os.listdir("/proc/self/task")),
        join=joined - last,
        build=seconds,
        peak=peak_memory(device),
    )
    every = gather(mine)
    del kept
    leave()
    return _most(every)


def measure_faked_start(config: Config, rank: int) -> Start:
    """The groups of one rank of the config's world, without the others, on torch's fake process
    group: nothing is connected and no weight is made."""
    # Not public, and slow to import.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from trainer.build.groups import ExpertExchange, open_run_groups
    from trainer.build.part import partition_of

    mesh, schedule, device = mesh_of(config), schedule_of(config), torch.device("cpu")
    homes = list(partition_of(config, schedule).homes())
    timeout = timedelta(seconds=config.run.timeout)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=mesh.world)
    before, exchange = _sockets(), ExpertExchange.of(config)
    seconds, _ = _timed(
        lambda: open_run_groups(mesh, schedule, homes, rank, timeout, device, exchange)
    )
    sockets, threads = _sockets() - before, len(os.listdir("/proc/self/task"))
    groups, peak = dist.get_pg_count(), peak_memory(device)
    leave()
    return Start(mesh.world, groups, sockets, threads, 0.0, seconds, peak)


def _most(every: list[Start]) -> Start:
    return Start(
        ranks=every[0].ranks,
        groups=max(one.groups for one in every),
        sockets=max(one.sockets for one in every),
        threads=max(one.threads for one in every),
        join=max(one.join for one in every),
        build=max(one.build for one in every),
        peak=max(one.peak for one in every),
    )


def _timed(action: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


def _sockets() -> int:
    links = Path("/proc/self/fd").iterdir()
    return sum(1 for link in links if os.path.islink(link) and "socket:" in os.readlink(link))

"""One rank of the truth test: a schedule in the executor, with stages that sleep."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from parallel.pipeline.executor import Executor
from parallel.pipeline.transport import Transport, channel_specs
from parallel.pipeline.truth.sleeping import LOSS, SHAPE, sleeping_stages
from parallel.ranks.groups import open_groups
from parallel.ranks.together import gather, start_together
from parallel.schedule.lower import Channel, channels, lower
from parallel.schedule.table import Schedule
from parallel.study.costs import CostModel
from parallel.study.measured import ItemClock, timeline_of
from parallel.study.timeline import Timeline


@dataclass(frozen=True)
class Measured:
    """One run. wall: until the last rank's executor had returned, in seconds from the common
    start. timeline: in the same seconds. loss: the sum of the micro-batches' losses."""

    wall: float
    timeline: Timeline
    loss: float


def make_transport(schedules: Sequence[Schedule], rank: int, timeout: timedelta) -> Transport:
    """The transport for `schedules` of a pipeline over all ranks of the world. Collective."""
    everyone, device = tuple(range(dist.get_world_size())), torch.device("cpu")
    used = set[Channel]().union(*(channels(lower(schedule)) for schedule in schedules))
    specs = channel_specs([everyone], used)
    opened = open_groups(specs, rank, timeout, device)
    groups = {specs[spec]: group for spec, group in opened.items()}
    return Transport(rank, everyone, groups, SHAPE, torch.float32, device)


def execute(
    schedule: Schedule, costs: CostModel, transport: Transport, exchanges: bool = True
) -> Measured:
    """Run `schedule` once on stages that sleep for `costs`, in seconds. Collective."""
    rank, clock = dist.get_rank(), ItemClock()
    executor = Executor(
        schedule,
        lower(schedule).programs[rank],
        sleeping_stages(schedule, costs, rank, exchanges),
        transport,
        on_item=clock.note,
    )
    origin = start_together()
    result = executor.run(lambda flow, n: flow * schedule.micro_batches_per_flow + n, {LOSS: 1.0})
    wall = time.monotonic() - origin
    loss = result.losses.get(LOSS, torch.zeros(()))
    numbers = torch.tensor([wall, float(loss)], dtype=torch.float64)
    everyone = [torch.empty_like(numbers) for _ in range(schedule.ranks)]
    dist.all_gather(everyone, numbers)
    walls, losses = torch.stack(everyone).unbind(1)
    timeline = timeline_of(schedule, gather(clock.since(origin)), costs)
    return Measured(float(walls.max()), timeline, float(losses.sum()))

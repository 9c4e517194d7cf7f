"""The process groups of a run: which there are in its world, and opening those of a rank.

On every rank, in this order: the world's own; that of the ranks it exchanges tokens with; those
that hold the same parameters as it does; the channels of its pipeline.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from parallel.pipeline.transport import channel_specs
from parallel.ranks.groups import GroupSpec, open_groups
from parallel.ranks.mesh import Mesh, RankSet
from parallel.reduce.copies import Home, all_copies
from parallel.schedule.lower import Channel, channels, lower
from parallel.schedule.table import Schedule


@dataclass(frozen=True)
class RunGroups:
    """Of one rank. experts: None where it has all experts. copies: by set of ranks that hold the
    same. channels: by pipeline ranks."""

    experts: dist.ProcessGroup | None
    copies: Mapping[RankSet, dist.ProcessGroup]
    channels: Mapping[Channel, dist.ProcessGroup]


def group_specs(
    mesh: Mesh, schedule: Schedule, homes: Iterable[Home]
) -> tuple[list[GroupSpec], Mapping[GroupSpec, Channel]]:
    """(all groups of the world but those of channels, those of channels with their channels), in
    the order in which they are opened, the same on every rank."""
    ranks = range(mesh.world)
    experts = sorted({mesh.expert_group(rank) for rank in ranks})
    copies = sorted(all_copies(homes, mesh, schedule.placement))
    specs = [GroupSpec(one, "an exchange between experts", "all-to-all") for one in experts]
    specs += [GroupSpec(one, "sums of gradients over copies", "all-reduce") for one in copies]
    pipelines = [mesh.pipeline_group(rank) for rank in range(mesh.data)]
    return specs, channel_specs(pipelines, channels(lower(schedule)))


def open_run_groups(
    mesh: Mesh,
    schedule: Schedule,
    homes: Iterable[Home],
    rank: int,
    timeout: timedelta,
    device: torch.device,
) -> RunGroups:
    """Make and open the groups of world rank `rank`; for tensors of `device`. Collective over the
    world. Raises OpeningError."""
    specs, channel_of = group_specs(mesh, schedule, homes)
    opened = open_groups([*specs, *channel_of], rank, timeout, device)
    by_use: dict[str, dict[RankSet, dist.ProcessGroup]] = {"all-to-all": {}, "all-reduce": {}}
    for spec in specs:
        if spec in opened:
            by_use[spec.serves][spec.ranks] = opened[spec]
    return RunGroups(
        experts=by_use["all-to-all"].get(mesh.expert_group(rank)),
        copies=by_use["all-reduce"],
        channels={channel_of[spec]: opened[spec] for spec in channel_of if spec in opened},
    )

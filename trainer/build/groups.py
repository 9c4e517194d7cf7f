"""The process groups of a run: which there are in its world, and opening those of a rank.

On every rank, in this order: the world's own; that of the ranks it exchanges tokens with; those
that hold the same parameters as it does; the channels of its pipeline.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeAlias

import torch
import torch.distributed as dist

from parallel.expert.by_node import NodeGroups
from parallel.expert.dispatch import ExpertGroups
from parallel.pipeline.transport import channel_specs
from parallel.ranks.groups import GroupSpec, open_groups
from parallel.ranks.mesh import Mesh, RankSet
from parallel.reduce.copies import Home, all_copies
from parallel.schedule.lower import Channel, channels, lower
from parallel.schedule.table import Schedule
from trainer.config.schema import Config

_ROWS = "an exchange between experts"
_ACROSS = "an exchange between experts, across nodes"
_WITHIN = "an exchange between experts, within a node"
_COUNTS = "the counts of exchanges between experts"
_SUMS = "sums of gradients over copies"
_LATENTS = "latents of attention, between ranks that share sequences"
_HITS = "counts between ranks that share sequences"


GroupsOfExperts: TypeAlias = ExpertGroups | NodeGroups | dist.ProcessGroup | None


@dataclass(frozen=True)
class ExpertExchange:
    """How ranks exchange tokens. dispatch: see MeshConfig. sms: multiprocessors for it, 0 for the
    own choice of what carries it. per_node: ranks of a node, where tokens go by nodes."""

    dispatch: Literal["all_to_all", "hierarchical", "deepep"] = "all_to_all"
    sms: int = 0
    per_node: int | None = None

    @classmethod
    def of(cls, config: Config) -> ExpertExchange:
        cluster = config.cluster
        return cls(config.mesh.dispatch, cluster.communication_sms, cluster.gpus_per_node)


@dataclass(frozen=True)
class RunGroups:
    """Of one rank. experts: None where it has all experts; for DeepEP, one group. context: of rows
    and of counts, None where no sequence is shared. copies: by set of ranks that hold the same.
    channels: by pipeline ranks."""

    experts: GroupsOfExperts
    context: tuple[dist.ProcessGroup, dist.ProcessGroup] | None
    copies: Mapping[RankSet, dist.ProcessGroup]
    channels: Mapping[Channel, dist.ProcessGroup]


def group_specs(
    mesh: Mesh, schedule: Schedule, homes: Iterable[Home], exchange: ExpertExchange
) -> tuple[list[GroupSpec], Mapping[GroupSpec, Channel]]:
    """(all groups of the world but those of channels, those of channels with their channels), in
    the order in which they are opened, the same on every rank."""
    copies = sorted(all_copies(homes, mesh, schedule.placement))
    experts = sorted({mesh.expert_group(rank) for rank in range(mesh.world)})
    specs = [spec for one in experts for spec in expert_specs(one, exchange)]
    specs += [GroupSpec(one, _SUMS, "all-reduce") for one in copies]
    if mesh.context > 1:
        for one in sorted({mesh.context_group(rank) for rank in range(mesh.world)}):
            specs += [
                GroupSpec(one, _LATENTS, "all-to-all", exchange.sms),
                GroupSpec(one, _HITS, "all-reduce"),
            ]
    pipelines = [mesh.pipeline_group(rank) for rank in range(mesh.data)]
    return specs, channel_specs(pipelines, channels(lower(schedule)))


def expert_specs(experts: RankSet, exchange: ExpertExchange) -> Iterator[GroupSpec]:
    """Of the ranks that share experts."""
    sets: dict[str, list[RankSet]] = {_ROWS: [experts], _COUNTS: [experts]}
    if exchange.dispatch == "hierarchical":
        assert exchange.per_node is not None  # a config without it is refused
        starts = range(0, len(experts), exchange.per_node)
        nodes = [experts[start : start + exchange.per_node] for start in starts]
        sets = {_ACROSS: list(zip(*nodes)), _WITHIN: nodes, _COUNTS: [experts]}
    elif exchange.dispatch == "deepep":
        del sets[_COUNTS]  # it counts by itself
    for purpose, each in sets.items():
        for ranks in each:
            yield GroupSpec(ranks, purpose, "all-to-all", exchange.sms)


def open_run_groups(
    mesh: Mesh,
    schedule: Schedule,
    homes: Iterable[Home],
    rank: int,
    timeout: timedelta,
    device: torch.device,
    exchange: ExpertExchange,
) -> RunGroups:
    """Make and open the groups of world rank `rank`; for tensors of `device`. Collective over the
    world. Raises OpeningError."""
    specs, channel_of = group_specs(mesh, schedule, homes, exchange)
    opened = open_groups([*specs, *channel_of], rank, timeout, device)
    by_purpose = {spec.purpose: group for spec, group in opened.items()}
    shared = mesh.context > 1
    return RunGroups(
        experts=groups_of_experts(exchange, opened),
        context=(by_purpose[_LATENTS], by_purpose[_HITS]) if shared else None,
        copies={spec.ranks: group for spec, group in opened.items() if spec.purpose == _SUMS},
        channels={channel_of[spec]: opened[spec] for spec in channel_of if spec in opened},
    )


def groups_of_experts(
    exchange: ExpertExchange, opened: Mapping[GroupSpec, dist.ProcessGroup]
) -> GroupsOfExperts:
    """From the groups of this rank, which is in one for each purpose of an exchange at most."""
    of = {spec.purpose: group for spec, group in opened.items()}
    if not {_ROWS, _WITHIN} & set(of):
        return None
    if exchange.dispatch == "hierarchical":
        return NodeGroups(of[_COUNTS], of[_ACROSS], of[_WITHIN])
    return of[_ROWS] if exchange.dispatch == "deepep" else ExpertGroups(of[_ROWS], of[_COUNTS])

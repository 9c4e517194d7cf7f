"""A proof that the calls of all ranks of a world match, from a dry run of one rank of each role.

Ranks of one pipeline rank have the same part of the model and the same program, and differ in what
tokens and which experts they have: their calls are the same on groups that have other names. So one
rank of each pipeline rank is run, an item of each kind once; its sequence is put together by the
table, and given to the others with the groups of their own.

Whether it comes to an end is asked of one pipeline, all others doing the same beside it: where it
has an order of events that goes through, so have all together, one event of all after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from parallel.ranks.mesh import Mesh, RankSet
from parallel.schedule.lower import lower
from trainer.config.derived import mesh_of, schedule_of
from trainer.config.schema import Config
from trainer.dry.blocking import stuck_ranks
from trainer.dry.device import pretended_gpu
from trainer.dry.matching import ByRank, Entries, Mismatch, mismatches
from trainer.dry.observer import DryRunError
from trainer.dry.rank import dry_step, routing_of, with_micro_batches
from trainer.dry.sequence import Entry, GroupKey, Sequence, sequence_of


@dataclass(frozen=True)
class Verified:
    """What was found.

    run: the ranks that were run. groups, channels: of the world. calls: of all ranks in one step.
    mismatches: empty where all is well. stuck: by rank that never ends, where. at_risk: the same if
    a device synchronises by itself while gradients are being summed, as CUDA does where it loads a
    kernel or frees memory.
    """

    world: int
    run: RankSet
    groups: int
    channels: int
    calls: int
    mismatches: tuple[Mismatch, ...]
    stuck: Mapping[int, Entry]
    at_risk: Mapping[int, Entry]

    @property
    def sound(self) -> bool:
        return not (self.mismatches or self.stuck)


def verify(
    config: Config, progress: Callable[[int, int], None] = lambda done, total: None
) -> Verified:
    """Of the step of a config. progress(done, total): ranks that were run. Raises DryRunError."""
    sequences = representatives(config, progress)
    return check(mesh_of(config), sequences)


def representatives(
    config: Config, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[int, Sequence]:
    """By rank, the sequences of one rank for each pipeline rank; where the routing that is assumed
    is not even, of one for each expert rank too."""
    mesh, found = mesh_of(config), dict[int, Sequence]()
    programs = lower(schedule_of(config)).programs
    config = with_micro_batches(config, config.pipeline.micro_batches)
    even = routing_of(config).is_even(_tokens(config, mesh))
    ranks = mesh.holders(range(mesh.pipeline), 0 if even else None)
    ranks = tuple(rank for rank in ranks if mesh.coordinate(rank).expert_data == 0)
    for done, rank in enumerate(ranks):
        progress(done, len(ranks))
        record = dry_step(config, rank, pretended_gpu(), distinct=True)
        program = programs[mesh.coordinate(rank).pipeline]
        found[rank] = sequence_of(record, program, mesh.pipeline_group(rank))
    progress(len(ranks), len(ranks))
    return found


def _tokens(config: Config, mesh: Mesh) -> int:
    """Of a micro-batch."""
    rows = mesh.data * config.pipeline.micro_batches
    return config.data.global_batch * config.data.sequence_length // rows


def check(mesh: Mesh, sequences: Mapping[int, Sequence]) -> Verified:
    """sequences: by rank, for every rank or for one of each pipeline rank at least; ranks that are
    left out do as the first one that has their pipeline rank."""
    calls = calls_of_all(mesh, sequences)
    found = tuple(mismatches(calls))
    pipeline = {rank: sequences[rank].entries for rank in sequences}
    keys = {key for by_group in calls.values() for key in by_group}
    channels = sum(is_channel for is_channel, _ in keys)
    return Verified(
        world=mesh.world,
        run=tuple(sequences),
        groups=len(keys) - channels,
        channels=channels,
        calls=sum(len(e) for by_group in calls.values() for e in by_group.values()),
        mismatches=found,
        stuck={} if found else stuck_ranks(pipeline),
        at_risk={} if found else stuck_ranks(pipeline, sums_block=True),
    )


def calls_of_all(mesh: Mesh, sequences: Mapping[int, Sequence]) -> ByRank:
    """Of every rank of the world."""
    first: dict[tuple[int, ...], int] = {}
    for rank in sequences:
        place = mesh.coordinate(rank)
        first.setdefault((place.pipeline,), rank)
        first.setdefault((place.pipeline, place.expert), rank)
    groups = _Groups(mesh)
    calls: dict[int, Mapping[GroupKey, Entries]] = {}
    for rank in range(mesh.world):
        place = mesh.coordinate(rank)
        alike = first.get((place.pipeline, place.expert), first[(place.pipeline,)])
        like = rank if rank in sequences else alike
        calls[rank] = {
            (is_channel, groups.of(rank, like, is_channel, ranks)): entries
            for (is_channel, ranks), entries in sequences[like].by_group.items()
        }
    return calls


class _Groups:
    """Which group of one rank is what a group of another rank is to that."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._holders = cache(mesh.holders)

    def of(self, rank: int, like: int, is_channel: bool, ranks: RankSet) -> RankSet:
        """The group of `rank` that is to it what `ranks` is to the rank `like`."""
        mesh = self.mesh
        if rank == like:
            return ranks
        pipelines = tuple(dict.fromkeys(mesh.coordinate(each).pipeline for each in ranks))
        if is_channel:
            return tuple(mesh.pipeline_group(rank)[pipeline] for pipeline in pipelines)
        if set(ranks) <= set(mesh.expert_group(like)):
            return self._of_experts(rank, ranks)
        if ranks == self._holders(pipelines, None):
            return ranks
        if ranks == self._holders(pipelines, mesh.coordinate(like).expert):
            return self._holders(pipelines, mesh.coordinate(rank).expert)
        raise DryRunError(f"rank {like} calls on a group of no known kind: ranks {ranks}")

    def _of_experts(self, rank: int, ranks: RankSet) -> RankSet:
        """All ranks that share experts, those of a node, or one of each node."""
        step, first = ranks[1] - ranks[0], self.mesh.expert_group(rank)[0]
        if step == 1:
            first = rank - rank % len(ranks)
        else:
            first += rank % step
        return tuple(range(first, first + step * len(ranks), step))

"""Process groups: a rank makes those that it is in, in an order in which no two ranks can wait for
each other, and each serves all of its ranks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from parallel.errors import LostRankError
from parallel.ranks.groups import GroupSpec, nccl_options, open_groups, turns
from parallel.ranks.mesh import Mesh
from parallel.ranks.process import Process
from parallel.ranks.roll_call import RollCall
from parallel.schedule.table import Schedule
from tests.commands import ROOT
from tests.distributed import run_world
from trainer.build.groups import ExpertExchange, group_specs, open_run_groups
from trainer.build.part import partition_of
from trainer.config.derived import mesh_of, schedule_of
from trainer.config.parse import config_parser, parse
from trainer.model.partition import Partition

CPU = torch.device("cpu")
Order = Sequence[GroupSpec | None]
"""What one rank makes, in order; None is a group of itself alone."""


def v3() -> tuple[Mesh, Schedule, Partition]:
    """DeepSeek-V3 on 2,048 ranks."""
    file = str(ROOT / "configs" / "deepseek_v3_2048.yaml")
    config, _ = parse(config_parser("test", "", ""), ["--config", file])
    schedule = schedule_of(config)
    return mesh_of(config), schedule, partition_of(config, schedule)


def opened_by_all(orders: Sequence[Order]) -> int:
    """How many groups open, if a rank makes the next of its order once the one before is open, and
    a group opens once all of its ranks make it."""
    at, opened = [0] * len(orders), 0
    waiting: dict[GroupSpec, int] = {}
    moving = list(range(len(orders)))
    while moving:
        rank = moving.pop()
        if at[rank] == len(orders[rank]):
            continue
        spec = orders[rank][at[rank]]
        at[rank] += 1
        if spec is None:
            moving.append(rank)
            continue
        waiting[spec] = waiting.get(spec, 0) + 1
        if waiting[spec] == len(spec.ranks):
            opened += 1
            moving += spec.ranks
    return opened


def test_2048_ranks_make_only_their_groups_and_none_waits_in_a_circle() -> None:
    mesh, schedule, partition = v3()
    specs, channel_of = group_specs(mesh, schedule, partition.homes(), ExpertExchange())
    everything = [*specs, *channel_of]
    assert len(everything) == 4424
    planned = turns(everything)
    orders = [[turn.get(rank) for turn in planned] for rank in range(mesh.world)]
    assert opened_by_all(orders) == len(everything)
    made = [[spec for spec in order if spec is not None] for order in orders]
    assert {len(mine) for mine in made} == {6, 8}  # the ends of a pipeline have one neighbour
    for rank, mine in enumerate(made):
        assert len(set(mine)) == len(mine) and all(rank in spec.ranks for spec in mine)
    # A group's name: every one of its ranks has made equally many groups before.
    places: dict[GroupSpec, set[int]] = {}
    for order in orders:
        for place, spec in enumerate(order):
            if spec is not None:
                places.setdefault(spec, set()).add(place)
    assert all(len(found) == 1 for found in places.values())
    assert len(planned) <= 9


def test_one_rank_of_2048_opens_its_groups() -> None:
    mesh, schedule, partition = v3()
    rank = 1000
    with _fake_world(rank, mesh.world):
        made = open_run_groups(
            mesh, schedule, partition.homes(), rank, timedelta(seconds=30), CPU, ExpertExchange()
        )
        assert made.experts is not None
        members = [
            sorted(map(dist.get_process_group_ranks, groups))
            for groups in (
                [made.experts.rows, made.experts.counts],
                made.copies.values(),
                made.channels.values(),
            )
        ]
    assert members == [
        [[*range(960, 1024)]] * 2,
        [[*range(896, 1152)], [936, 1000, 1064, 1128]],  # of pipeline ranks 7 and 8
        [[872, 1000]] * 2 + [[1000, 1128]] * 2,
    ]


@contextmanager
def _fake_world(rank: int, world: int) -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_nccl_available(), reason="this torch has no NCCL")
@pytest.mark.parametrize("sms", [0, 20])
def test_an_exchange_goes_first_and_on_few_multiprocessors(sms: int) -> None:
    options, default = nccl_options(sms), dist.ProcessGroupNCCL.Options()
    assert options.is_high_priority_stream and not default.is_high_priority_stream
    assert options.config.max_ctas == (sms or default.config.max_ctas)


OVERLAPPING = [
    GroupSpec((0, 1), "gradients", "all-reduce"),
    GroupSpec((0, 2), "gradients", "all-reduce"),
    GroupSpec((0, 3), "gradients", "all-reduce"),
    GroupSpec((1, 2, 3), "experts", "all-to-all"),
    GroupSpec((3, 0), "a channel", "message"),
    GroupSpec((0, 3), "a channel", "message"),
    GroupSpec((2, 3), "gradients", "all-reduce"),
    GroupSpec((1,), "gradients", "all-reduce"),
]


def _sums(process: Process) -> dict[GroupSpec, float]:
    opened = open_groups(OVERLAPPING, process.rank, timedelta(seconds=20), CPU)
    sums = {}
    for spec, group in opened.items():
        number = torch.tensor(float(2**process.rank))
        dist.all_reduce(number, group=group)
        sums[spec] = float(number)
    return sums


def test_groups_that_overlap_each_reach_all_of_their_ranks() -> None:
    """Ranks are in one to six of them, some twice with the same others."""
    for rank, sums in enumerate(run_world(4, _sums)):
        mine = [spec for spec in OVERLAPPING if rank in spec.ranks and len(spec.ranks) > 1]
        assert sums == {spec: sum(2.0**member for member in spec.ranks) for spec in mine}


def _stay_away(process: Process, file: str) -> str:
    """Rank 1 does not come to the second group."""
    roll_call = RollCall(dist.FileStore(file, 2), process.rank, 2)
    specs = [GroupSpec((0, 1), purpose, "all-reduce") for purpose in ("sums", "more sums")]
    try:
        with roll_call.held_on_failure(lambda: False):
            open_groups(specs[: 2 - process.rank], process.rank, timedelta(seconds=1), CPU)
            time.sleep(5 * process.rank)
    except LostRankError as error:
        return str(error)
    return ""


def test_a_group_that_does_not_open_is_named_with_its_ranks(tmp_path: Path) -> None:
    said = run_world(2, _stay_away, str(tmp_path / "store"))
    group = "the group for more sums of ranks 0, 1"
    assert said == [f"rank 1 does not answer; rank 0 opens {group}", ""]

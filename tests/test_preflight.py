"""The preflight names the node that is slow or unlike the others: on readings made by hand, and on
real ranks, one of which is slowed down by what the test has it do."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel.ranks.process import Process
from tests.commands import TINY, finish, start
from tests.distributed import run_world
from trainer.config.schema import ClusterConfig
from trainer.io.terminal import plain_console
from trainer.plan.datasheets import machine_of
from trainer.preflight.judge import Limits, problems, stated
from trainer.preflight.preflight import PreflightError, preflight
from trainer.preflight.rates import Work, rounds
from trainer.preflight.reading import Reading
from trainer.preflight.report import Result, show

H100 = stated(machine_of(ClusterConfig(gpu="h100")))
LIMITS = Limits(slow=0.8, skew=1.0, free=2**30, least=0.3, stated=H100)


def reading(rank: int, **changes: Any) -> Reading:
    """A healthy rank of nodes with two ranks each."""
    alike = {"versions": {"torch": "2.14.1"}, "environment": {"NCCL_DEBUG": "WARN"}}
    rates = {"product": 6e14 + rank, "exchange": 3e11 + rank, "link": 4e10 + rank}
    base: Mapping[str, Any] = {**alike, **rates, "free": 2**40, "shared": True, "clock": 0.0}
    return Reading(rank, rank // 2, f"n{rank // 2}", **{**base, **changes})


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "throttled": ({"product": 4e14}, "rank 5 on node 2 (n2) is slow: matrix product 400 TFLOP/s"),
    "NVLink": ({"exchange": 1e11}, "all-to-all in the node 100 GB/s, 33% of the median 300 GB/s"),
    "network card": ({"link": 2e9}, "link to other nodes 2 GB/s, 5% of the median 40 GB/s"),
    "version": ({"versions": {"torch": "2.13.0"}}, "has torch 2.13.0; most have 2.14.1"),
    "environment": ({"environment": {}}, "has in its environment NCCL_DEBUG nothing; most have"),
    "clock": ({"clock": -7.25}, "the clock of node 2 (n2) is 7.2 s behind the others"),
    "disk": ({"free": 2**29}, "node 2 (n2) has 0.5 GiB of room at run.dir, fewer than 1.0"),
    "mount": ({"shared": False}, "node 2 (n2) does not see at run.dir"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_node_unlike_the_others_is_named(what: str) -> None:
    changes, said = WRONG[what]
    healthy = [reading(rank) for rank in range(8)]
    assert problems(healthy, LIMITS) == []
    (found,) = problems([*healthy[:5], reading(5, **changes), *healthy[6:]], LIMITS)
    assert found.node == 2 and said in found.line, found.line


def test_links_that_are_slow_everywhere_are_seen() -> None:
    """As over TCP, where the median of all links is no measure."""
    (found,) = problems([reading(rank, link=2e9) for rank in range(8)], LIMITS)
    assert found.node is None
    assert "link to other nodes 2 GB/s in the median, 4% of the 50 GB/s" in found.line


def test_rank_0_may_be_the_odd_one() -> None:
    """Clocks are measured against its own, and versions shown are its own."""
    odd = [
        reading(rank, clock=9.0 * (rank > 1), versions={"torch": f"2.{13 + (rank > 1)}"})
        for rank in range(6)
    ]
    assert {problem.node for problem in problems(odd, LIMITS)} == {0}


@pytest.mark.parametrize("nodes", range(1, 12))
def test_each_node_measures_with_others_and_with_each_only_once(nodes: int) -> None:
    met = {(a, b) for pairs in rounds(nodes, 100) for a, b in pairs.items()}
    assert met == {(a, b) for a in range(nodes) for b in range(nodes) if a != b}
    count = 0
    for pairs in rounds(nodes, 3):
        assert all(pairs[b] == a for a, b in pairs.items())
        count += len(pairs)
    assert count == len({(a, b) for pairs in rounds(nodes, 3) for a, b in pairs.items()})


@pytest.mark.parametrize(("nodes", "rows"), [(4, 4), (100, 40)])
def test_the_table_shows_the_bad_node_first(
    capsys: pytest.CaptureFixture[str], nodes: int, rows: int
) -> None:
    readings = [reading(rank) for rank in range(2 * nodes)]
    readings[-1] = replace(readings[-1], product=1e14)
    result = Result(readings, LIMITS, problems(readings, LIMITS))
    show(result, plain_console(width=120))
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("│")]
    assert len(table) == rows + 2, "with those of the median and of the datasheet"
    assert f"n{nodes - 1}" in table[0] and "100 TFLOP/s (17%)" in table[0]
    assert "989 TFLOP/s" in table[-1]
    assert lines[-1] == result.line and "rank" in result.line


# --- on real ranks ---------------------------------------------------------------------------


class Pretence:
    """Work of a rank whose timer moves only with its work, so that a busy machine does not show."""

    def __init__(self, rank: int) -> None:
        self.rank, self.now = rank, 0.0

    def work(self) -> Work:
        return Work(
            self.multiply, self.exchange, self.send, self.receive, self.clock, lambda: self.now
        )

    def multiply(self, a_NN: torch.Tensor, b_NN: torch.Tensor) -> None:
        self.now += 0.3 if self.rank == SLOW_PRODUCT else 0.1

    def exchange(self, into: torch.Tensor, sent: torch.Tensor, group: dist.ProcessGroup) -> None:
        self.now += 0.1

    def send(self, tensor: torch.Tensor, peer: int) -> None:
        dist.send(tensor, peer)
        self.now += 1.0 if SLOW_LINK in (self.rank, peer) else 0.1

    def receive(self, tensor: torch.Tensor, peer: int) -> None:
        dist.recv(tensor, peer)
        self.now += 1.0 if SLOW_LINK in (self.rank, peer) else 0.1

    def clock(self) -> float:
        return time.time() + (30.0 if self.rank == LATE_CLOCK else 0.0)


LATE_CLOCK, SLOW_LINK, SLOW_PRODUCT = 1, 2, 3


def _preflight(process: Process, folder: str) -> list[tuple[int | None, str]]:
    """Each rank is a node."""
    mine = replace(process, local_rank=0, local_world=1)
    limits = Limits(slow=0.5, skew=10.0, free=0, least=0.3, stated={})
    where, wait = (torch.device("cpu"), Path(folder)), timedelta(seconds=60)
    work = Pretence(process.rank).work()
    result = preflight(mine, *where, limits, lambda _: None, wait, work)
    return [(problem.node, problem.line) for problem in result.problems]


def test_sick_ranks_are_named(tmp_path: Path) -> None:
    first, *others = run_world(4, _preflight, str(tmp_path / "runs"))
    assert all(other == first for other in others), "ranks disagree"
    assert [node for node, _ in first] == [LATE_CLOCK, SLOW_LINK, SLOW_PRODUCT], first
    (_, clock), (_, link), (_, product) = first
    assert clock.startswith("the clock of node 1 (") and "30.0 s ahead" in clock
    assert link.startswith("rank 2 on node 2 (") and "link to other nodes" in link
    assert product.startswith("rank 3 on node 3 (") and "matrix product" in product
    assert not list((tmp_path / "runs").iterdir())


def _uneven(process: Process, folder: str) -> str:
    mine = replace(process, local_rank=0, local_world=1 + process.rank)
    wait = timedelta(seconds=60)
    with pytest.raises(PreflightError) as raised:
        preflight(mine, torch.device("cpu"), Path(folder), LIMITS, lambda _: None, wait)
    return str(raised.value)


def test_nodes_have_the_same_number_of_processes(tmp_path: Path) -> None:
    for line in run_world(2, _uneven, str(tmp_path)):
        assert line.startswith("the node of rank 1 has 2 processes, that of rank 0 1")


# --- the command -----------------------------------------------------------------------------


def test_the_command_says_what_is_wrong_once_and_ends_on_2(tmp_path: Path) -> None:
    options = ("--config", TINY, "--slow", "0.01", "--free", "1e9", "--json")
    code, out, err = finish(start(tmp_path, *options, script="launch/preflight.py"))
    lines = [line for line in err.splitlines() if "room at run.dir" in line]
    assert code == 2 and len(lines) == 1 and lines[0].startswith("preflight: node 0 ("), err
    assert "preflight: all-to-all in each node" in err
    found = json.loads(out)
    (node,) = found["nodes"]
    assert not found["passed"] and found["problems"][0]["node"] == 0
    assert node["ranks"] == [0, 1] and min(node["all_to_all_bytes_per_second"]) > 0

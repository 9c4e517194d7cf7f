"""A job of two nodes, two processes each, in two network namespaces, started as on a cluster: it
survives the death of either torchrun, and the loss of a whole node."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from tests.commands import TINY, finish, rows, saved_weights, start, steps_done, wait_for
from tests.two_nodes import Node, two_nodes, why_not

STEPS = 70
OPTIONS = (
    "--config", TINY, "--mesh.expert_data", "2", "--data.global_batch", "8",
    "--run.steps", str(STEPS), "--run.timeout", "8", "--checkpoint.every", "5",
)  # fmt: skip
pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(bool(why_not()), reason=f"no network namespaces here: {why_not()}"),
]


@dataclass
class Job:
    """A job of two nodes, and what watches over them on a cluster."""

    folder: Path
    nodes: tuple[Node, Node]
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, starts: int) -> None:
        """Start all nodes, as for the `starts`-th time again."""
        self.running = [
            node.start(
                self.folder,
                *OPTIONS,
                "--run.overwrite",  # of the runs before this job, not of its own
                log=self.log(node),
                STARTS=str(starts),
                PREFLIGHT="--slow 0.01",
            )
            for node in self.nodes
        ]

    def log(self, node: Node) -> Path:
        return self.folder / f"node{node.number}.log"

    def restarts(self) -> int:
        return sum(row["event"] == "restart" for row in rows(self.folder, events=True))

    def train(self, more: int) -> None:
        """Wait until the run has made `more` steps."""
        target = steps_done(self.folder) + more
        wait_for(lambda: steps_done(self.folder) >= target or not self.alive(), 120)
        assert self.alive(), self.said()

    def alive(self) -> bool:
        return all(process.poll() is None for process in self.running)

    def kill_agent(self, number: int) -> None:
        """Kill a node's torchrun, and wait until the run goes on."""
        restarts = self.restarts()
        os.kill(self.nodes[number].agent(self.running[number]), signal.SIGKILL)
        wait_for(lambda: self.restarts() > restarts or not self.alive(), 120)
        assert self.alive(), self.said()

    def said(self) -> str:
        return "".join(f"--- node {n.number}\n{self.log(n).read_text()}" for n in self.nodes)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    with two_nodes() as nodes:
        yield Job(tmp_path, nodes)


def test_two_nodes_survive_their_agents_and_the_loss_of_a_node(
    job: Job, tmp_path_factory: pytest.TempPathFactory
) -> None:
    job.start(0)
    job.train(11)
    assert "all nodes are alike" in job.log(job.nodes[0]).read_text()
    job.kill_agent(1)
    job.train(6)
    job.kill_agent(0)  # the one at which all meet
    job.train(6)

    # A machine that is gone says nothing. Its watcher then starts all nodes again.
    job.nodes[1].cable("down")
    job.nodes[1].end()
    wait_for(lambda: "rank" in job.log(job.nodes[0]).read_text().rpartition("step ")[2], 60)
    job.running[0].terminate()
    assert job.running[0].wait(40) == 128 + signal.SIGTERM, job.said()
    job.nodes[1].cable("up")
    job.start(1)
    assert [process.wait(180) for process in job.running] == [0, 0], job.said()

    assert [row["step"] for row in rows(job.folder)] == [*range(STEPS)]
    assert [path.name for path in (job.folder / "runs").iterdir()] == ["tiny"]
    undisturbed = tmp_path_factory.mktemp("undisturbed")
    code, _, err = finish(start(undisturbed, *OPTIONS))
    assert code == 0, err
    expected = saved_weights(undisturbed / "runs/tiny/weights")
    found = saved_weights(job.folder / "runs/tiny/weights")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)

"""Two nodes on one machine: network namespaces, joined by one virtual cable, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.commands import ROOT

INTERFACE = "cable"
ADDRESSES = ("10.0.0.1", "10.0.0.2")


@dataclass(frozen=True)
class Node:
    """number: from 0. namespace: its name."""

    number: int
    namespace: str

    def start(
        self, folder: Path, *arguments: str, log: Path, **variables: str
    ) -> subprocess.Popen[bytes]:
        """Start the node's part of a run of two processes per node, in `folder`."""
        environment = {k: v for k, v in os.environ.items() if k not in {"RANK", "WORLD_SIZE"}}
        environment |= {
            "NODES": "2", "NODE": str(self.number), "PROCESSES": "2", "HEAD": ADDRESSES[0],
            "ADDRESS": ADDRESSES[self.number], "INTERFACE": INTERFACE, "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT), "MEETING": "120",
        }  # fmt: skip
        with open(log, "ab") as output:
            return subprocess.Popen(
                [
                    "ip", "netns", "exec", self.namespace,
                    "bash", str(ROOT / "launch/submit/node.sh"), *arguments,
                ],
                cwd=folder, env=environment | variables, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip

    def agent(self, process: subprocess.Popen[bytes]) -> int:
        """The process id of torchrun in what `start` has started."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return int(children[0])

    def cable(self, state: str) -> None:
        """Pull this node's end of the cable ("down"), or plug it in again ("up")."""
        _must("-n", self.namespace, "link", "set", INTERFACE, state)

    def end(self) -> None:
        """Kill whatever runs in the namespace, which is all ours."""
        found = _ip("netns", "pids", self.namespace)
        if found.stdout.split():
            subprocess.run(["kill", "-KILL", *found.stdout.split()], capture_output=True)


def why_not() -> str | None:
    """Why there can be no namespaces here; None if there can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and the program ip (iproute2)"
    name = f"tandem-try-{os.getpid()}"
    made = _ip("netns", "add", name)
    _ip("netns", "delete", name)
    return made.stderr.strip() or None


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Two nodes that reach each other and nobody else; what runs in them is killed at the end."""
    names = [f"tandem-node{number}-{os.getpid()}" for number in range(2)]
    try:
        for name in names:
            _must("netns", "add", name)
        _must("-n", names[0], "link", "add", INTERFACE, "type", "veth",
              "peer", "name", INTERFACE, "netns", names[1])  # fmt: skip
        for name, address in zip(names, ADDRESSES, strict=True):
            _must("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            _must("-n", name, "link", "set", "lo", "up")
            _must("-n", name, "link", "set", INTERFACE, "up")
        yield Node(0, names[0]), Node(1, names[1])
    finally:
        for number, name in enumerate(names):
            Node(number, name).end()
            _ip("netns", "delete", name)


def _ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True)


def _must(*arguments: str) -> None:
    done = _ip(*arguments)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"

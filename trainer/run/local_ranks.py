"""All ranks of a mesh as processes of this machine, for commands that start them by themselves."""

from __future__ import annotations

import itertools
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import replace

from parallel.ranks.environment import STORE
from trainer.errors import ConfigError
from trainer.run.exit import say
from trainer.run.signals import SIGNALS
from trainer.run.startup import JOB, RESTARTS
from trainer.run.supervise import Child, supervise

THREADS = "OMP_NUM_THREADS"
CPP_LOG = "TORCH_CPP_LOG_LEVEL"
_MOST_PER_CORE = 16


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def threads(ranks: int) -> int:
    """Threads with which each of `ranks` processes of this machine computes.

    The cores are shared out. A single process leaves one to the rest of the machine: torch's
    threads wait for each other at every product, so that one core that is busy with something else
    makes all of them slow.
    """
    return max(1, cores() - 1 if ranks == 1 else cores() // ranks)


def limit_threads() -> None:
    """For a process that runs alone: `threads(1)`, unless the environment says otherwise. Call it
    before torch is imported."""
    os.environ.setdefault(THREADS, str(threads(1)))


def require_room(prog: str, ranks: int) -> None:
    """Raise ConfigError for a mesh that is meant for more machines than this one."""
    most = _MOST_PER_CORE * cores()
    if ranks > most:
        raise ConfigError(
            f"mesh asks for {ranks} processes, but this machine has {cores()} cores, enough for "
            f"{most}: start them on several machines with `torchrun --nnodes N --nproc-per-node M "
            f"--rdzv-backend c10d --rdzv-endpoint HOST launch/{prog}.py ...`, or change mesh"
        )


def run_again_and_again(prog: str, ranks: int, restarts: int) -> int:
    """As `run_ranks_here`, and up to `restarts` times again where ranks have failed: not where the
    command makes no sense, nor where it was asked to stop."""
    job = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
    for count in itertools.count():
        code = run_ranks_here(prog, ranks, {JOB: job, RESTARTS: str(count)})
        final = {0, ConfigError.exit_code, *(128 + number for number in SIGNALS)}
        if code in final or count == restarts:
            return code
        say(f"{prog}: starting all ranks again, restart {count + 1} of {restarts}")
    raise AssertionError


def run_ranks_here(prog: str, ranks: int, environment: Mapping[str, str] | None = None) -> int:
    """Run this very command again as `ranks` processes, with what torchrun would set in their
    environment and `environment` beside it; the exit code."""
    # Rank 0 gets the socket itself, so that nobody else can take the port meanwhile.
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    common = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(listening.getsockname()[1]),
        THREADS: os.environ.get(THREADS, str(threads(ranks))),
        # A rank that leaves makes torch's C++ side of the others warn, with a stack of its own.
        CPP_LOG: os.environ.get(CPP_LOG, "ERROR"),
        **(environment or {}),
    }
    children = [
        Child(f"rank {rank}", own_command(), common | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(ranks)
    ]
    descriptor = listening.detach()
    children[0] = replace(
        children[0],
        environment={**children[0].environment, STORE: str(descriptor)},
        descriptors=(descriptor,),
    )
    return supervise(prog, children)


def own_command() -> list[str]:
    """The command line that has started this process."""
    return [sys.executable, *sys.orig_argv[1:]]

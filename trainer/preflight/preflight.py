"""Looks at all nodes before a run: are they alike, do they reach each other, is one slow?"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch

from parallel.errors import TandemError
from parallel.ranks.groups import GroupSpec, open_groups
from parallel.ranks.process import Process
from parallel.ranks.together import gather
from trainer.preflight.facts import disk, environment, host, versions
from trainer.preflight.judge import Limits, problems
from trainer.preflight.rates import (
    Work,
    clock_offsets,
    exchange_rate,
    link_rate,
    product_rate,
    rounds,
)
from trainer.preflight.reading import Reading
from trainer.preflight.report import Result

_MOST_ROUNDS = 8  # of links: other nodes with which each one measures


class PreflightError(TandemError):
    """The nodes cannot run a job as they are."""

    exit_code = 2


def preflight(
    process: Process,
    device: torch.device,
    folder: Path,
    limits: Limits,
    say: Callable[[str], None],
    timeout: timedelta,
    work: Work | None = None,
) -> Result:
    """The same result on every rank. Collective over the world, which `join` has made.

    folder: run.dir. say: is told what begins. timeout: of a collective. work: how this rank does
    what is measured. Raises PreflightError where nodes have different numbers of processes.
    """
    work = Work() if work is None else work
    say("versions, environment, disk")
    _require_equal_nodes(process)
    nodes, node = process.world // process.local_world, process.rank // process.local_world
    free, shared = disk(folder)
    first = process.local_world * node
    own = tuple(range(first, first + process.local_world))
    say("clocks")
    heads = range(process.local_world, process.world, process.local_world)
    offsets = gather(clock_offsets(process.rank, heads, work))[0]
    say("matrix products")
    product = product_rate(device, work)
    say("all-to-all in each node")
    specs = [
        GroupSpec(tuple(range(n, n + len(own))), "an all-to-all in a node", "all-to-all")
        for n in range(0, process.world, len(own))
    ]
    opened = open_groups(specs, process.rank, timeout, device)
    gather(None)  # all have ended their products
    exchange = exchange_rate(device, work, opened.get(specs[node]))
    reading = Reading(
        rank=process.rank,
        node=node,
        host=host(),
        versions=versions(device),
        environment=environment(os.environ),
        free=free,
        shared=shared,
        clock=[0.0, *offsets][node],
        product=product,
        exchange=exchange,
        link=_best_link(process, nodes, node, device, work, say),
    )
    readings = gather(reading)
    return Result(readings, limits, problems(readings, limits))


def _best_link(
    process: Process,
    nodes: int,
    node: int,
    device: torch.device,
    work: Work,
    say: Callable[[str], None],
) -> float | None:
    """Each rank measures with the rank of its own number on the other node: over its own card."""
    found = []
    pairings = list(rounds(nodes, _MOST_ROUNDS))
    for number, partner in enumerate(pairings):
        say(f"links between nodes, round {number + 1} of {len(pairings)}")
        gather(None)  # so that all measure at the same time
        if node in partner:
            peer = partner[node] * process.local_world + process.local_rank
            found.append(link_rate(device, work, process.rank, peer))
    return max(found, default=None)


def _require_equal_nodes(process: Process) -> None:
    counts = gather(process.local_world)
    for rank, count in enumerate(counts):
        if count != counts[0]:
            raise PreflightError(
                f"the node of rank {rank} has {count} processes, that of rank 0 {counts[0]}: start "
                "as many on each"
            )

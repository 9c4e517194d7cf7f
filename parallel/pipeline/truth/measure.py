"""The truth test: each schedule simulated, run, and run by torch.distributed.pipelining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import torch.distributed as dist

from parallel.pipeline.transport import Transport
from parallel.pipeline.truth.ours import Measured, execute, make_transport
from parallel.pipeline.truth.replay import gradients_first, replay
from parallel.pipeline.truth.results import Comparison, Truth, TruthTest
from parallel.pipeline.truth.theirs import TorchPipeline
from parallel.ranks.forked import run_ranks
from parallel.study.costs import NOTHING
from parallel.study.simulate import simulate

_TIMEOUT = timedelta(minutes=10)


def measure(test: TruthTest) -> tuple[list[Truth], list[Comparison]]:
    """Start the ranks and run all of `test`.

    The comparison has a pair factor of 1, since torch runs a pair's parts one after the other.
    """
    return run_ranks(
        test.ranks, _measure, test, timeout=_TIMEOUT, real_time=test.real_time
    )  # fmt: skip


def _measure(_: object, test: TruthTest) -> tuple[list[Truth], list[Comparison]]:
    schedules = [test.schedule(name) for name in (*test.names, *test.with_torch)]
    transport = make_transport(schedules, dist.get_rank(), _TIMEOUT)
    truths = [_truth(test, name, transport) for name in test.names]
    return truths, [_compare(test, name, transport) for name in test.with_torch]


def _truth(test: TruthTest, name: str, transport: Transport) -> Truth:
    schedule = test.schedule(name)
    execute(schedule, NOTHING, transport)  # the first run is slower
    runs: Sequence[Measured] = [
        execute(schedule, test.costs, transport) for _ in range(test.repeats)
    ]
    simulated = simulate(schedule, test.costs).makespan
    best = min(runs, key=lambda run: run.wall)
    replayed = replay(best.timeline)
    return Truth(
        name,
        simulated,
        tuple(run.wall for run in runs),
        in_items=replayed / simulated - 1,
        in_messages=(best.wall - replayed) / simulated,
    )


def _compare(test: TruthTest, name: str, transport: Transport) -> Comparison:
    schedule, costs = test.schedule(name), replace(test.costs, pair_factor=1.0)
    pipeline = TorchPipeline(schedule)
    execute(schedule, NOTHING, transport)
    # In turn, so that other load on the machine affects all of them.
    rounds = [
        (
            pipeline.execute(costs),
            execute(schedule, costs, transport).wall,
            execute(schedule, costs, transport, exchanges=False).wall,
        )
        for _ in range(test.repeats)
    ]
    theirs, ours, first = zip(*rounds)
    simulated = simulate(schedule, costs).makespan
    simulated_first = simulate(gradients_first(schedule), costs).makespan
    return Comparison(name, simulated, simulated_first, theirs, ours, first)

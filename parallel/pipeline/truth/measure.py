"""The truth test: each schedule simulated, run, and run by torch.distributed.pipelining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import torch.distributed as dist

from parallel.pipeline.costs import CostModel
from parallel.pipeline.simulate import simulate
from parallel.pipeline.transport import Transport
from parallel.pipeline.truth.ours import Measured, execute, make_transport
from parallel.pipeline.truth.processes import run_ranks
from parallel.pipeline.truth.replay import gradients_first, replay
from parallel.pipeline.truth.results import Comparison, Plan, Truth
from parallel.pipeline.truth.theirs import TorchPipeline

_NOTHING = CostModel(forward=0.0, input_grad=0.0, weight_grad=0.0)
_TIMEOUT = timedelta(minutes=10)


def measure(plan: Plan) -> tuple[list[Truth], list[Comparison]]:
    """Start the ranks and run all of `plan`.

    The comparison has a pair factor of 1, since torch runs a pair's parts one after the other.
    """
    return run_ranks(
        plan.ranks, _measure, plan, timeout=_TIMEOUT, real_time=plan.real_time
    )  # fmt: skip


def _measure(_: object, plan: Plan) -> tuple[list[Truth], list[Comparison]]:
    transport = make_transport(plan.ranks, dist.get_rank(), _TIMEOUT)
    truths = [_truth(plan, name, transport) for name in plan.names]
    return truths, [_compare(plan, name, transport) for name in plan.with_torch]


def _truth(plan: Plan, name: str, transport: Transport) -> Truth:
    schedule = plan.schedule(name)
    execute(schedule, _NOTHING, transport)  # the first run is slower
    runs: Sequence[Measured] = [
        execute(schedule, plan.costs, transport) for _ in range(plan.repeats)
    ]
    simulated = simulate(schedule, plan.costs).makespan
    best = min(runs, key=lambda run: run.wall)
    replayed = replay(best.timeline)
    return Truth(
        name,
        simulated,
        tuple(run.wall for run in runs),
        in_items=replayed / simulated - 1,
        in_messages=(best.wall - replayed) / simulated,
    )


def _compare(plan: Plan, name: str, transport: Transport) -> Comparison:
    schedule, costs = plan.schedule(name), replace(plan.costs, pair_factor=1.0)
    pipeline = TorchPipeline(schedule)
    execute(schedule, _NOTHING, transport)
    # In turn, so that what else the machine does meets all of them.
    rounds = [
        (
            pipeline.execute(costs),
            execute(schedule, costs, transport).wall,
            execute(schedule, costs, transport, exchanges=False).wall,
        )
        for _ in range(plan.repeats)
    ]
    theirs, ours, first = zip(*rounds)
    simulated = simulate(schedule, costs).makespan
    simulated_first = simulate(gradients_first(schedule), costs).makespan
    return Comparison(name, simulated, simulated_first, theirs, ours, first)

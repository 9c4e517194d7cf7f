"""Costs of a run's own stages, measured, for simulating its schedule.

Each rank times the items that it runs, without its waits for messages; exposed all-to-alls are part
of a stage's time. F, I and W are timed with every pair taken apart and every B split; then pairs as
the schedule has them. The last step gives the timeline. By the host clock: CPU only.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from parallel.ops.precision import PRECISIONS
from parallel.pipeline.executor import MicroBatches
from parallel.ranks.together import gather, start_together
from parallel.schedule.table import Action, Item, Overlap, Schedule, actions
from parallel.study.costs import CostModel
from parallel.study.measured import ItemClock, TimedItems, timeline_of
from parallel.study.timeline import Timeline
from trainer.bench.throughput import random_parts
from trainer.build.layout import Layout
from trainer.config.schema import RecipeConfig
from trainer.model.stage import MicroBatch
from trainer.recipe.progress import Progress
from trainer.recipe.recipe import Recipe


@dataclass(frozen=True)
class MeasuredCosts:
    """costs: in seconds, by stage; pairs by rank. timeline: of one step, in seconds."""

    costs: CostModel
    timeline: Timeline


@dataclass(frozen=True)
class Measurement:
    """One rank's steps, each its items with start and end in seconds from the step's start.

    apart: every pair taken apart and every B split. together: as scheduled.
    """

    pipeline_rank: int
    apart: list[TimedItems]
    together: list[TimedItems]


def measure_costs(layout: Layout, steps: int, warmup: int) -> MeasuredCosts | None:
    """Run `warmup` and then `steps` steps of each kind, without an optimizer; the result on rank 0.

    Collective: the world's group exists if there is more than one process. On a CPU.
    """
    apart = _run(layout, taken_apart(layout.schedule), steps, warmup)
    together = _run(layout, layout.schedule, steps, warmup)
    everyone = gather(Measurement(layout.pipeline_rank, apart, together))
    if layout.process.rank != 0:
        return None
    config = layout.config
    tokens = layout.sequences * config.data.sequence_length
    element = PRECISIONS[config.precision.parameters].parameters.itemsize
    model = cost_model(layout.schedule, everyone)
    costs = replace(model, message_bytes=float(tokens * config.model.dim * element))
    # The pipeline of data rank 0: its ranks in order.
    last = [everyone[rank].together[-1] for rank in layout.mesh.pipeline_group(0)]
    return MeasuredCosts(costs, timeline_of(layout.schedule, last, costs))


def taken_apart(schedule: Schedule) -> Schedule:
    """The same table with each B as I, then W, and each pair as its backward, then its forward."""
    programs = []
    for program in schedule.programs:
        items: list[Item] = []
        for item in program:
            for action in sorted(actions(item), key=lambda a: a.kind):  # B before F
                place = (action.flow, action.stage, action.micro_batch)
                split = action.kind == "B"
                items += [Action("I", *place), Action("W", *place)] if split else [action]
        programs.append(tuple(items))
    return replace(schedule, programs=tuple(programs))


def cost_model(schedule: Schedule, everyone: list[Measurement]) -> CostModel:
    """Medians by stage over all ranks that ran it, and each rank's pairs over their parts."""
    seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
    for measurement in everyone:
        for item, duration in _durations(measurement.apart):
            (action,) = actions(item)
            seconds[action.kind, action.stage].append(duration)
    medians = {key: statistics.median(values) for key, values in seconds.items()}

    factors: dict[int, list[float]] = defaultdict(list)
    for measurement in everyone:
        for item, duration in _durations(measurement.together):
            if isinstance(item, Overlap):
                backward = item.backward.stage
                parts = [("F", item.forward.stage), ("I", backward), ("W", backward)]
                alone = sum(medians[part] for part in parts)
                factors[measurement.pipeline_rank].append(duration / alone)
    stages = range(schedule.stages)
    return CostModel(
        forward=[medians["F", stage] for stage in stages],
        input_grad=[medians["I", stage] for stage in stages],
        weight_grad=[medians["W", stage] for stage in stages],
        pair_factor=[
            statistics.median(factors[rank]) if rank in factors else 1.0
            for rank in range(schedule.ranks)
        ],
    )


def _numbered(parts: Sequence[MicroBatch], per_flow: int) -> MicroBatches:
    return lambda flow, n: parts[flow * per_flow + n]


def _durations(steps: list[TimedItems]) -> Iterator[tuple[Item, float]]:
    return ((item, end - start) for step in steps for item, start, end in step)


def _run(layout: Layout, schedule: Schedule, steps: int, warmup: int) -> list[TimedItems]:
    """The items of each counted step; times count from the moment all ranks started it."""
    executor = layout.executor(schedule, layout.objective, layout.config.pipeline.overlap)
    per_flow = schedule.micro_batches_per_flow
    largest = replace(layout.config, recipe=RecipeConfig())
    weights = layout.loss_weights(Recipe(largest).at(Progress()))
    timed: list[TimedItems] = []
    for step in range(warmup + steps):
        layout.optimizer.zero()
        clock = ItemClock()
        executor.on_item = clock.note
        origin = start_together() if layout.process.world > 1 else time.monotonic()
        executor.run(_numbered(random_parts(layout, step), per_flow), weights)
        timed.append(clock.since(origin))
    return timed[warmup:]

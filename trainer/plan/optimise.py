"""The split of layers over stages and the table with which a config's step is shortest, as far as
they are found: first the split, then the order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from parallel.schedule.table import Schedule
from parallel.study.costs import CostModel
from parallel.study.search import Found, Progress, search
from parallel.study.simulate import simulate
from parallel.study.split import split_layers
from trainer.build.part import partition_of
from trainer.config.derived import schedule_of
from trainer.config.schema import Config
from trainer.errors import ConfigError
from trainer.plan.datasheets import machine_of
from trainer.plan.step_time import SOURCES, stage_cost_model


@dataclass(frozen=True)
class Optimised:
    """Seconds of the passes of a step, the end of the step not counted.

    before: with the config's table and split. split: layers by stage, and with_split: with the
    config's table and these. found: by a search from there.
    """

    before: float
    config_split: tuple[int, ...]
    split: tuple[int, ...]
    with_split: float
    found: Found

    @property
    def table(self) -> Schedule:
        return self.found.schedule


def optimise(
    config: Config, seconds: float, progress: Callable[[Progress], None] = lambda progress: None
) -> Optimised:
    """seconds: for the search of the table; finding the split takes less.

    Raises ConfigError where the costs are those of stages as they are.
    """
    if config.plan.costs not in SOURCES:
        raise ConfigError(
            f"--optimise: plan.costs = {config.plan.costs} has the costs of the present stages, "
            f"not of layers: set plan.costs to {' or '.join(SOURCES)}"
        )
    schedule, machine = schedule_of(config), machine_of(config.cluster)

    def costs(split: tuple[int, ...]) -> CostModel:
        pipeline = replace(config.pipeline, layers_per_stage=list(split))
        return stage_cost_model(replace(config, pipeline=pipeline), schedule, machine)

    partition = partition_of(config, schedule)
    given = tuple(len(partition.stage_layers(stage)) for stage in range(schedule.stages))
    before = simulate(schedule, costs(given)).makespan
    better = split_layers(schedule, config.model.layers, costs)
    split, with_split = given, before
    if better.makespan < before:
        split, with_split = better.counts, better.makespan
    found = search(
        costs(split),
        schedule.placement,
        schedule.micro_batches,
        seconds=seconds,
        progress=progress,
    )
    return Optimised(before, given, split, with_split, found)


def as_json(found: Optimised) -> dict[str, Any]:
    """Seconds of the passes of a step; gain: of the share of them that is saved."""
    search = found.found
    return {
        "table": {"name": search.start, "seconds": found.before},
        "split": {"layers_per_stage": list(found.split), "seconds": found.with_split},
        "found": {"seconds": search.makespan, "moves": search.moves},
        "lower_bound": search.lower_bound,
        "gain": 1 - search.makespan / found.before,
    }


def as_lines(found: Optimised) -> Iterator[str]:
    """For a person."""
    search, before = found.found, found.before

    def row(what: str, seconds: float) -> str:
        return f"{what:44}  {seconds:9.4f} s  {seconds / before - 1:+7.2%}"

    yield "Passes of a step, the end of the step not counted:"
    yield row(f"config: {_counts(found.config_split)}", before)
    if found.split != found.config_split:
        yield row(f"split: {_counts(found.split)}", found.with_split)
    yield row(f"with a table found in {search.moves:,} moves", search.makespan)
    yield row("no table with this split takes less than", search.lower_bound)
    yield f"--pipeline.layers_per_stage '{list(found.split)}'"


def _counts(split: tuple[int, ...]) -> str:
    """Runs of equal numbers, as in 15 x 4, 1."""
    runs = [(count, len(list(same))) for count, same in groupby(split)]
    return ", ".join(f"{n} x {count}" if n > 1 else str(count) for count, n in runs)

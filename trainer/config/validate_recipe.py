"""What the recipe of a run must satisfy before anything starts."""

from __future__ import annotations

from collections.abc import Iterator

from parallel.schedule.check import check
from parallel.schedule.settings import MOST_CELLS
from parallel.schedule.table import ScheduleError
from trainer.config.derived import schedule_of
from trainer.config.schema import Config
from trainer.errors import ConfigError
from trainer.recipe.plan import KEY
from trainer.recipe.recipe import Recipe


def recipe_problems(config: Config) -> Iterator[str]:
    """Each one line. data.global_batch divides into micro-batches, and the schedule has a table for
    their number."""
    try:
        recipe = Recipe(config)
    except ConfigError as error:
        yield str(error)
        return
    if config.model.moe.score == "softmax" and config.recipe.bias_gamma:
        yield "recipe.bias_gamma must be null with model.moe.score softmax: V2 has no router bias"
    if config.recipe.batch is not None:
        yield from _table_problems(config, recipe)


def _table_problems(config: Config, recipe: Recipe) -> Iterator[str]:
    """Of the tables of all batch sizes: the first step of a size must not be the one that finds
    it."""
    counts, ranks = recipe.micro_batches, config.mesh.pipeline
    if config.pipeline.schedule_file and counts != [config.pipeline.micro_batches]:
        yield (
            f"pipeline.schedule_file has one table, but {KEY} has steps of {len(counts)} sizes: "
            f"set pipeline.schedule, or {KEY} to null"
        )
        return
    if sum(counts) * ranks > MOST_CELLS:
        yield (
            f"{KEY}: its {len(counts)} sizes need tables of {sum(counts):,} micro-batches x "
            f"{ranks} pipeline ranks in all, more than {MOST_CELLS:,}: raise the number after `by`"
        )
        return
    for count in counts:
        row = config.data.global_batch // config.pipeline.micro_batches
        try:
            check(schedule_of(config, count))
        except ScheduleError as error:
            yield (
                f"{KEY}: a batch of {count * row} is {count} micro-batches of {row} sequences over "
                f"all data ranks, but {error}"
            )

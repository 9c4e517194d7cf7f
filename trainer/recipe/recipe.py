"""The recipe of a run: what each step is made with, a pure function of config and progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from trainer.config.keys import values
from trainer.config.limits import Range
from trainer.config.recipe_schema import BATCH, PHASE
from trainer.config.schema import Config, OptimizerConfig
from trainer.errors import ConfigError
from trainer.recipe.phases import Curve, Phase, constant, read_phases
from trainer.recipe.plan import KEY, Plan, batch_sizes, make_plan
from trainer.recipe.progress import Point, Progress

# What has phases, beside the batch size, and the key that it has its value from where it has none.
CURVES = {
    "learning_rate": "optimizer.lr",
    "bias_gamma": "model.moe.bias_gamma",
    "balance_alpha": "model.moe.balance_alpha",
    "mtp_weight": "model.mtp.weight",
}


@dataclass(frozen=True)
class StepRecipe:
    """What a step is made with. sequences: of its global batch. micro_batches: of each data rank.
    The others are those of the config's keys."""

    sequences: int
    micro_batches: int
    learning_rate: float
    bias_gamma: float
    balance_alpha: float
    mtp_weight: float


class Recipe:
    """What every step of a run is made with.

    plan: the steps of the run as they come where no data is skipped. curves: by field of
    StepRecipe. Raises ConfigError, in one line, for phases that do not fit together.
    """

    def __init__(self, config: Config) -> None:
        run, data = config.run, config.data
        length = Point(run.steps, "steps") if run.tokens is None else Point(run.tokens, "tokens")
        self.plan: Plan = make_plan(_batch_phases(config), length, data.sequence_length)
        # Micro-batches of all data ranks, one of each, make a row.
        self._row = data.global_batch // config.pipeline.micro_batches
        for size in batch_sizes(self.plan):
            if size % self._row:
                raise ConfigError(
                    f"{KEY}: a batch of {size} cannot be divided into micro-batches: every size "
                    "must be a multiple of data.global_batch / pipeline.micro_batches = "
                    f"{self._row}"
                )
        given = {key.name: (value, key.limit) for key, value in values(config)}
        self.curves = {name: self._curve(name, _phases(name, given, config)) for name in CURVES}

    def at(self, progress: Progress) -> StepRecipe:
        """Of the step that comes after `progress`."""
        levels = self.plan.levels
        ahead = (v for v in levels if v.until is None or not v.until.reached(progress))
        sequences = next(ahead, levels[-1]).sequences
        after = progress.after_step(sequences, self.plan.sequence_length)
        return StepRecipe(
            sequences=sequences,
            micro_batches=sequences // self._row,
            **{name: curve.at(progress, after) for name, curve in self.curves.items()},
        )

    def finished(self, progress: Progress) -> bool:
        """Whether no step comes after `progress`."""
        return self.plan.length.reached(progress)

    @property
    def micro_batches(self) -> list[int]:
        """The different numbers of micro-batches of the steps, in the order in which they come."""
        return [size // self._row for size in batch_sizes(self.plan)]

    def _curve(self, name: str, phases: list[Phase]) -> Curve:
        ends = [None, *(phase.until for phase in phases)]
        places = (self.plan.place(f"recipe.{name}", p, end) for p, end in zip(phases, ends))
        return Curve(tuple(places))


def _batch_phases(config: Config) -> list[Phase]:
    texts, last = config.recipe.batch, config.data.global_batch
    if texts is None:
        return constant(last)
    phases = read_phases(KEY, texts, BATCH, Range(1, 10**7))
    if phases[-1].last != last:
        raise ConfigError(
            f"{KEY} ends at {phases[-1].last:.0f}, but data.global_batch = {last}: set that to "
            "the size that the run ends with"
        )
    return phases


def _phases(name: str, given: Mapping[str, tuple[Any, Any]], config: Config) -> list[Phase]:
    """Those of recipe.NAME; without any, what the key that it replaces stands for. given: the value
    and the limit of each key."""
    value, limit = given[CURVES[name]]
    if (texts := given[f"recipe.{name}"][0]) is not None:
        return read_phases(f"recipe.{name}", texts, PHASE, Range(0, cast(Range, limit).most))
    return _warm_up_and_cosine(config.optimizer) if name == "learning_rate" else constant(value)


def _warm_up_and_cosine(config: OptimizerConfig) -> list[Phase]:
    lr, end = config.lr, Point(config.warmup_steps, "steps")
    cosine = Phase("cosine", "cosine", lr, lr * config.min_lr_ratio, 0, None)
    return [Phase("warm-up", "linear", 0.0, lr, 0, end), cosine] if end.count else [cosine]

"""What if: the plans of a config with other values of some keys, best first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

from parallel.schedule.table import ScheduleError
from trainer.config.derived import schedule_of
from trainer.config.keys import did_you_mean, keys
from trainer.config.schema import Config
from trainer.config.values import NotAValue, read_text
from trainer.errors import ConfigError
from trainer.plan.plan import Plan, make_plan

MOST = 10_000
_KEYS = {key.name: key for key in keys(Config)}


@dataclass(frozen=True)
class Choice:
    """One key and the values to try, as they were written and as they are."""

    key: str
    texts: tuple[str, ...]
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Variant:
    """texts: the value of each key of the sweep. plan: or why there is none."""

    texts: tuple[str, ...]
    plan: Plan | None
    problem: str = ""


def read_choices(texts: Sequence[str]) -> list[Choice]:
    """From `pipeline.schedule=dualpipe,zbv`; lists go in brackets.

    Raises ConfigError for what is no key, or no value of it.
    """
    choices = [_read(text) for text in texts]
    count = prod(len(choice.texts) for choice in choices)
    if count > MOST:
        raise ConfigError(f"--sweep: {count:,} combinations are more than {MOST:,}: leave some out")
    return choices


def sweep(
    config: Config, choices: Sequence[Choice], progress: Callable[[int, int], None]
) -> list[Variant]:
    """Every combination: those that fit, with most tokens per second and GPU first; then those that
    do not fit; then what cannot be."""
    combinations = list(product(*(zip(choice.texts, choice.values) for choice in choices)))
    variants = []
    for number, combination in enumerate(combinations):
        progress(number, len(combinations))
        changed = config
        for choice, (_, value) in zip(choices, combination):
            changed = with_value(changed, choice.key, value)
        variants.append(_variant(tuple(text for text, _ in combination), changed))
    return sorted(variants, key=_order)


def with_value(config: Any, key: str, value: Any) -> Any:
    """The config, or a section of it, with another value of a dotted key."""
    section, _, rest = key.partition(".")
    new = with_value(getattr(config, section), rest, value) if rest else value
    return replace(config, **{section: new})


def _variant(texts: tuple[str, ...], config: Config) -> Variant:
    try:
        return Variant(texts, make_plan(_with_fitting_stages(config)))
    except (ConfigError, ScheduleError) as error:
        return Variant(texts, None, str(error))


def _with_fitting_stages(config: Config) -> Config:
    """Layers spread evenly where the table has another number of stages than the config's split."""
    split = config.pipeline.layers_per_stage
    if split is None or len(split) == schedule_of(config).stages:
        return config
    return replace(config, pipeline=replace(config.pipeline, layers_per_stage=None))


def _order(variant: Variant) -> tuple[bool, bool, float]:
    plan = variant.plan
    if plan is None:
        return True, True, 0.0
    return False, not plan.fits, -plan.rates.tokens_per_second_per_gpu


def _read(text: str) -> Choice:
    name, equals, values = text.partition("=")
    if name not in _KEYS:
        raise ConfigError(f"--sweep: there is no key {name!r}{did_you_mean(name, _KEYS)}")
    if not equals or not values:
        raise ConfigError(f"--sweep {name}: write its values after =, as in {name}=1,2")
    key, texts = _KEYS[name], tuple(_split(values))
    try:
        return Choice(name, texts, tuple(read_text(key, each) for each in texts))
    except NotAValue as error:
        raise ConfigError(f"--sweep: {name} {error}") from None


def _split(values: str) -> Iterator[str]:
    """At commas, but not inside of brackets."""
    depth, part = 0, ""
    for letter in values:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            yield part
            part = ""
        else:
            part += letter
    yield part

"""A mixture as a config writes it: `code: shards/code at 0.3 until 10B tokens, 0.5`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.config.limits import Range
from trainer.config.recipe_schema import PHASE
from trainer.config.sources import KEY, NamedSource, named_sources
from trainer.data.mixture import Interleaving, Phase
from trainer.errors import ConfigError
from trainer.recipe.phases import read_phases


@dataclass(frozen=True)
class Mixture:
    """paths: of the sources by name, in their order."""

    paths: dict[str, str]
    interleaving: Interleaving


def read_mixture(texts: Sequence[str], sequence_length: int) -> Mixture:
    """Weights need not sum to 1: each source has its share of their sum. Raises ConfigError."""
    sources = named_sources(texts)
    weights = [_weights(source, sequence_length) for source in sources]
    starts = sorted({start for steps in weights for start, _ in steps})
    return Mixture(
        {s.name: s.path for s in sources},
        Interleaving(tuple(_phase(start, weights) for start in starts)),
    )


def _weights(source: NamedSource, sequence_length: int) -> list[tuple[int, float]]:
    """(the running sequence from which it holds, weight)."""
    key, parts = f"{KEY}: {source.name}", [part.strip() for part in source.weights.split(",")]
    phases = read_phases(key, parts, PHASE, Range(least=0))
    found, start = [], 0
    for phase in phases:
        if phase.shape != "constant" or (phase.until and phase.until.unit != "tokens"):
            raise ConfigError(
                f"{key}: '{phase.text}': weights are numbers that hold until so many tokens"
            )
        found.append((start, phase.last))
        if phase.until:
            end = -(-phase.until.count // sequence_length)
            if end <= start:
                raise ConfigError(f"{key}: '{phase.text}' ends before it starts")
            start = end
    return found


def _phase(start: int, weights: Sequence[Sequence[tuple[int, float]]]) -> Phase:
    values = [[value for first, value in steps if first <= start][-1] for steps in weights]
    total = sum(values)
    if not total:
        raise ConfigError(f"{KEY}: from sequence {start:,} on all weights are 0")
    return Phase(start, tuple(value / total for value in values))

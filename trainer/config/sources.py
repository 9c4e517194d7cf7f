"""The sources of a mixture, as data.mixture names them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from trainer.config.limits import SOURCE
from trainer.errors import ConfigError

KEY = "data.mixture"


class NamedSource(NamedTuple):
    """`code: shards/code at 0.3 until 10B tokens, 0.5`, in parts."""

    name: str
    path: str
    weights: str


def named_sources(texts: Sequence[str]) -> list[NamedSource]:
    """In their order. Raises ConfigError."""
    found: list[NamedSource] = []
    for text in texts:
        match = re.fullmatch(SOURCE.pattern, text)
        if match is None:
            raise ConfigError(f"{KEY} must be {SOURCE}, got {text!r}")
        if match["name"] in {source.name for source in found}:
            raise ConfigError(f"{KEY}: two sources are called {match['name']}: rename one")
        found.append(NamedSource(match["name"], match["path"], match["weights"]))
    if not found:
        raise ConfigError(f"{KEY} has no source: give it one, or set it to null")
    return found

"""Which keys of a config may change when a run goes on from a checkpoint.

A key that is free says where and how the run computes; any other is part of what is computed, so
that a change would make another run of it. The rule for a key is that of its longest prefix here,
so a new key of a section is part of what is computed until it is entered as free.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from trainer.config.keys import values
from trainer.config.schema import Config
from trainer.config.values import shown

COMPUTED = (
    "run.steps", "run.tokens", "run.seed", "precision", "model", "data", "optimizer", "recipe",
)  # fmt: skip
FREE = (
    "run.name", "run.dir", "run.overwrite", "run.device", "run.timeout", "run.io_timeout",
    "run.restarts", "run.check_copies_every", "run.compile", "run.attention", "run.kernels",
    "mesh", "pipeline", "recompute", "metrics", "checkpoint", "cluster", "plan",
    # What is done about steps that go wrong: a run that these have stopped may go on with others.
    "optimizer.skip_limit", "optimizer.spike", "optimizer.spike_threshold",
    # Who keeps the state, not what it is.
    "optimizer.zero", "optimizer.offload",
    # Only the initial weights come from there.
    "model.init_from",
    # Where the text is; whether it is the same one is seen from its tokens.
    "data.path", "data.text_field", "data.tokenizer",
)  # fmt: skip


def rule(key: str) -> str | None:
    """The entry of FREE or COMPUTED that a key goes by, if there is one."""
    parts = key.split(".")
    prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in FREE or prefix in COMPUTED), None)


def is_free(key: str) -> bool:
    """Whether a key may change; one without a rule may not."""
    return rule(key) in FREE


def flat(config: Config) -> dict[str, Any]:
    """Every key with its value, as JSON has it."""
    found: dict[str, Any] = json.loads(json.dumps({k.name: v for k, v in values(config)}))
    return found


def changes(saved: Mapping[str, Any], config: Config, allowed: Collection[str]) -> Iterator[str]:
    """What keeps `config` from going on with a run of which `saved` is the config, as `flat` gives
    it, one line for each key. allowed: keys, or sections, whose change is meant.

    A key that was not there when it was saved had its default.
    """
    now = flat(config)
    defaults = flat(Config())
    for name in sorted({*now, *saved}):
        if name not in now:
            yield f"{name}: the checkpoint says {shown(saved[name])}, and there is no such key now"
        elif not (is_free(name) or _is_allowed(name, allowed)):
            before = saved.get(name, defaults[name])
            if before != now[name]:
                yield f"{name}: checkpoint says {shown(before)}, config says {shown(now[name])}"


def _is_allowed(name: str, allowed: Collection[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)

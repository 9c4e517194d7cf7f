"""Two ways to take the same training step, in turns in one process: ours as configured, and either
ours in another precision or compiled, or that of transformers.

Both start from the same weights and read the same random tokens. What transformers does not train
is switched off on both sides: MTP modules, the balance loss and the moves of the router bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from parallel.ranks.process import Process
from trainer.bench.comparisons import compiled
from trainer.bench.results import Case, Memory, losses_agree, require_same, side_of
from trainer.bench.step_memory import step_memory
from trainer.bench.transformers_way import Transformers, exported
from trainer.bench.turns import OnProgress, Turns, take_turns, timed
from trainer.bench.ways import Ours, Way
from trainer.config.schema import Config, PrecisionConfig, RecomputeConfig


@dataclass(frozen=True)
class Pair:
    """Two ways to be compared, and what to call that."""

    name: str
    ours: Way
    theirs: Way


def comparable(config: Config) -> Config:
    """`config` without what transformers does not train, at a constant learning rate; its weights
    are exported exactly."""
    model, moe = config.model, config.model.moe
    return replace(
        config,
        model=replace(
            model,
            mtp=replace(model.mtp, depth=0),
            moe=replace(moe, balance_alpha=0.0, bias_gamma=0.0),
        ),
        optimizer=replace(config.optimizer, warmup_steps=0, min_lr_ratio=1.0),
        checkpoint=replace(config.checkpoint, export_dtype="float32"),
    )


def against_precision(
    name: str, config: Config, other: PrecisionConfig, turns: Turns, progress: OnProgress
) -> list[Case]:
    """Beside our own step in another precision."""
    return _against_ours(name, config, replace(config, precision=other), turns, progress)


def against_compiled(name: str, config: Config, turns: Turns, progress: OnProgress) -> list[Case]:
    """Beside our own step with compiled kernels."""
    return _against_ours(name, config, compiled(config), turns, progress)


def _against_ours(
    name: str, config: Config, other: Config, turns: Turns, progress: OnProgress
) -> list[Case]:
    config, other = comparable(config), comparable(other)
    pair, allowed = Pair(name, _ours(config), _ours(other)), max(map(_allowed, (config, other)))
    return _compare([pair], config, {}, allowed, turns, progress)


def against_transformers(
    name: str, config: Config, turns: Turns, progress: OnProgress
) -> list[Case]:
    """Beside transformers' step."""
    config = comparable(config)
    with exported(config) as weights:
        pair = Pair(name, _ours(config), Transformers("transformers", config, weights))
        return _compare([pair], config, {}, _allowed(config), turns, progress)


def memory_against_transformers(
    name: str, config: Config, turns: Turns, progress: OnProgress
) -> list[Case]:
    """Beside transformers' step with the memory of both: all kept; and computed again in the
    backward, by the config's keys of recompute or layer by layer, and by checkpointing."""
    config = comparable(config)
    kept = replace(config, recompute=RecomputeConfig())
    again = replace(config, recompute=recompute_of(config))
    with exported(kept) as weights:
        pairs = [
            Pair(f"{name}, all kept", _ours(kept), Transformers("transformers", kept, weights)),
            Pair(
                f"{name}, recomputed",
                replace(_ours(again), name=f"{_ours(again).name}, recompute"),
                Transformers("transformers, checkpointing", again, weights, checkpointing=True),
            ),
        ]
        ways = _ways(pairs)
        memories: dict[str, Memory] = {}
        for way in ways:
            progress(len(memories), len(ways))
            memories[way.name] = step_memory(way)
        return _compare(pairs, config, memories, _allowed(config), turns, progress)


def recompute_of(config: Config) -> RecomputeConfig:
    """What the config recomputes; whole layers, as checkpointing does, where that is nothing."""
    kept = RecomputeConfig()
    return RecomputeConfig(layer=True) if config.recompute == kept else config.recompute


def _compare(
    pairs: Sequence[Pair],
    config: Config,
    memories: Mapping[str, Memory],
    allowed: float,
    turns: Turns,
    progress: OnProgress,
) -> list[Case]:
    ways = _ways(pairs)
    device = Process().device(config.run.device)
    steps = take_turns(
        [way.start() for way in ways], turns, partial(timed, device=device), progress
    )
    sides = [
        side_of(way.name, [of], turns.warmup, memories.get(way.name))
        for way, of in zip(ways, steps)
    ]
    tokens = config.data.global_batch * config.data.sequence_length
    cases = []
    for number, pair in enumerate(pairs):
        ours, theirs = sides[2 * number : 2 * number + 2]
        agreement = losses_agree(ours, theirs, allowed)
        cases.append(require_same(Case(pair.name, tokens, ours, theirs, (agreement,))))
    return cases


def _allowed(config: Config) -> float:
    """How far apart rounding and what follows from it may bring the losses of a few steps."""
    return 5e-2 if config.precision.parameters == "bfloat16" else 1e-3


def _ways(pairs: Sequence[Pair]) -> list[Way]:
    return [way for pair in pairs for way in (pair.ours, pair.theirs)]


def _ours(config: Config) -> Ours:
    return Ours(
        f"Tandem, {config.precision.parameters}" + ", compiled" * config.run.compile, config
    )

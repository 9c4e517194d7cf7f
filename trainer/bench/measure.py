"""The comparison that is asked for, case by case."""

from __future__ import annotations

from typing import Literal

from trainer.bench import held
from trainer.bench.against import (
    against_compiled,
    against_precision,
    against_transformers,
    memory_against_transformers,
)
from trainer.bench.asked import Asked
from trainer.bench.comparisons import PRECISIONS, USUAL_WIDTHS
from trainer.bench.generation import against_generate
from trainer.bench.one_process import against_one_process
from trainer.bench.plain import against_plain
from trainer.bench.report import Printed, printed
from trainer.bench.results import Case, Report
from trainer.bench.step_memory import memory_of_torch
from trainer.bench.torch_pipelining import against_torch_pipelining
from trainer.bench.transformers_way import require_transformers
from trainer.bench.turns import OnProgress, Turns
from trainer.config.schema import Config
from trainer.io.count_progress import count_progress

WHAT = {"one-process": "runs", "needed-bytes": "settings"}


def measure(asked: Asked) -> Printed:
    """Raises RunError where the two sides do not compute the same."""
    if asked.against == "torch-pipelining":  # its first rank shows how far it is
        return _compared(asked, lambda done, total: None)
    with count_progress(WHAT.get(asked.against, "steps")) as progress:
        if asked.against == "needed-bytes":
            (config,) = asked.cases.values()
            return held.printed(held.held_by_tape(config, progress))
        return _compared(asked, progress)


def _compared(asked: Asked, progress: OnProgress) -> Printed:
    if asked.against in ("transformers", "generate"):
        require_transformers()
    turns = Turns(asked.steps, asked.warmup)
    cases = [
        case
        for name, config in asked.cases.items()
        for case in _cases(asked, name, config, turns, progress)
    ]
    ratio: Literal["time", "speed"] = "time" if asked.against in USUAL_WIDTHS else "speed"
    return printed(Report(asked.against, ratio, tuple(cases), _notes(asked)))


def _notes(asked: Asked) -> tuple[str, ...]:
    if not asked.memory:
        return ()
    return (f"of each peak, {memory_of_torch():,.0f} MiB are torch itself, imported",)


def _cases(
    asked: Asked, name: str, config: Config, turns: Turns, progress: OnProgress
) -> list[Case]:
    if asked.against in PRECISIONS:
        return against_precision(name, config, PRECISIONS[asked.against], turns, progress)
    if asked.against == "compiled":
        return against_compiled(name, config, turns, progress)
    if asked.against == "generate":
        return against_generate(name, config, asked.texts, turns, progress)
    if asked.against == "one-process":
        return against_one_process(name, config, turns, asked.runs, progress)
    if asked.against == "torch-pipelining":
        return against_torch_pipelining(name, config, turns)
    if asked.against == "plain":
        return against_plain(name, config, turns, progress)
    if asked.memory:
        return memory_against_transformers(name, config, turns, progress)
    return against_transformers(name, config, turns, progress)

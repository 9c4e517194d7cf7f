"""What a benchmark is asked for: which comparison, of which configs. No torch in here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.bench.comparisons import READS, USUAL_RANKS, USUAL_WIDTHS, require_fit
from trainer.bench.sizes import SIZES, dense, v3_part
from trainer.bench.step_options import add_step_options, require_steps
from trainer.config.parse import parse
from trainer.config.schema import Config
from trainer.errors import ConfigError
from trainer.io.option_types import whole_number

USUAL_SIZE, USUAL_MICRO_BATCHES, USUAL_RUNS = "1.7M", 16, 2
USUAL_BATCHES, USUAL_PROMPT, USUAL_NEW = (1, 8), 32, 128
MOST = 100_000


@dataclass(frozen=True)
class Texts:
    """What a step of generation makes: new tokens after so many prompts at once."""

    batch: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Asked:
    """cases: by name, what is compared. memory: whether to measure that, too. runs: of each side,
    where whole runs take turns. texts: what to generate, a case for each."""

    against: str
    cases: Mapping[str, Config]
    steps: int
    warmup: int
    memory: bool
    runs: int
    texts: tuple[Texts, ...]
    json: bool


class _Count:
    """Reads a number of an option; --help shows what it is."""

    def __call__(self, text: Any) -> int:
        return whole_number(1, MOST)(text)

    def __repr__(self) -> str:
        return "whole number"


def add_options(parser: Any) -> None:
    """What the command adds to the keys of a config."""
    add = parser.add_argument
    add("--against", choices=list(READS), default="transformers", help="The other side.")
    sizes = f"Models to compare on ({USUAL_SIZE}); keys of a config change them."
    add("--size", nargs="+", choices=list(SIZES), help=sizes)
    memory = "Measure peak memory, each side in a process of its own: all kept, and recomputed."
    add("--memory", action="store_true", default=None, help=memory)
    for option, help, more in (
        ("--width", "Widths without experts: plain (64 128 256), torch-pipelining (256).", True),
        ("--ranks", "torch-pipelining: pipeline ranks, a process each (4).", False),
        ("--micro-batches", "torch-pipelining: micro-batches of a step (16).", False),
        ("--runs", "one-process: runs of each side, which take turns (2).", False),
        ("--batch", "generate: texts at once, one or more numbers (1 8).", True),
        ("--prompt-tokens", "generate: of each text (32).", False),
        ("--new-tokens", "generate: of each text (128).", False),
    ):
        add(option, type=_Count(), nargs="+" if more else None, metavar="N", help=help)
    add_step_options(parser, steps=10, of="side")
    add("--json", action="store_true", help="Print one JSON object instead of a table.")


def read(parser: Any, arguments: Sequence[str]) -> Asked:
    """Raises ConfigError for what cannot be compared."""
    _, given = parse(parser, arguments, lambda given: next(iter(_bases(given).values())))
    bases = _bases(given)
    _require_effect(given)
    require_steps(given.steps, given.warmup)
    cases = {name: parse(parser, arguments, _always(base))[0] for name, base in bases.items()}
    for case in cases.values():
        require_fit(given.against, case)
    return Asked(
        against=given.against,
        cases=cases,
        steps=given.steps,
        warmup=given.warmup,
        memory=bool(given.memory),
        runs=_or_usual(given.runs, USUAL_RUNS),
        texts=_texts(given),
        json=given.json,
    )


def _bases(given: Any) -> dict[str, Config]:
    """By the name of its case, each config that keys change."""
    if given.get("config"):
        return {Path(given.get("config")[0]).stem: Config()}
    against = given.get("against")
    if against in USUAL_WIDTHS:
        ranks = _or_usual(given.get("ranks"), USUAL_RANKS[against])
        count = _or_usual(given.get("micro_batches"), USUAL_MICRO_BATCHES)
        widths = _or_usual(given.get("width"), USUAL_WIDTHS[against])
        return {f"width {width}": dense(width, ranks, count) for width in widths}
    if against == "needed-bytes":
        return {"V3": v3_part()}
    return {name: SIZES[name].config() for name in _or_usual(given.get("size"), [USUAL_SIZE])}


def _texts(given: Any) -> tuple[Texts, ...]:
    prompt = _or_usual(given.prompt_tokens, USUAL_PROMPT)
    new = _or_usual(given.new_tokens, USUAL_NEW)
    return tuple(Texts(batch, prompt, new) for batch in _or_usual(given.batch, USUAL_BATCHES))


def _or_usual(given: Any, usual: Any) -> Any:
    return usual if given is None else given


def _always(config: Config) -> Callable[[Any], Config]:
    return lambda given: config


def _require_effect(given: Any) -> None:
    """Raise ConfigError for an option that this comparison does not read, and for two that say the
    same."""
    for option in set().union(*READS.values()) - READS[given.against]:
        if given[option] is not None:
            name = option.replace("_", "-")
            raise ConfigError(f"--{name} has no effect with --against {given.against}")
    if given.config and given.size:
        raise ConfigError("--size is a config: leave out --config, or --size")

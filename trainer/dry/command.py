"""`launch/train.py --dry-run`: a step of one rank of the whole world, with nothing started; and
`launch/plan.py --verify`: whether all its ranks match."""

from __future__ import annotations

import json

from jsonargparse import ArgumentParser, Namespace

from trainer.config.derived import mesh_of
from trainer.config.schema import Config
from trainer.config.validate import validate
from trainer.errors import ConfigError
from trainer.io.count_progress import count_progress
from trainer.io.terminal import plain_console

OPTIONS = ("--rank", "--micro-batches")


def add_dry_run_options(parser: ArgumentParser) -> None:
    """Options beside the keys of a config."""
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="Run the step of one rank of the config's world at its real sizes, with nothing "
        "computed, sent or allocated, and say what it would send, hold and wait for: see "
        "docs/scale.md.",
    )
    parser.add_argument(
        "--rank", type=int, help="With --dry-run: which rank of the world, 0 if not given."
    )
    parser.add_argument(
        "--micro-batches",
        type=int,
        help="With --dry-run: of the step; if not given, pipeline.micro_batches.",
    )


def dry_run_wanted(given: Namespace) -> bool:
    """Whether one is asked for; ConfigError for an option that makes no sense without."""
    if not given.dry_run:
        for option in OPTIONS:
            if given[option.removeprefix("--").replace("-", "_")] is not None:
                raise ConfigError(f"{option} has no effect without --dry-run")
    return bool(given.dry_run)


def dry_run(config: Config, given: Namespace) -> int:
    """The exit code. Raises ConfigError for a config that its own number of ranks cannot run or a
    rank that it does not have, DryRunError where tensors of host and device meet."""
    world, rank = mesh_of(config).world, given.rank or 0
    validate(config, world)
    if not 0 <= rank < world:
        raise ConfigError(f"--rank is {rank}: this config has ranks 0 to {world - 1}")
    # Torch comes after what a bad config need not wait for.
    from trainer.dry.rank import with_micro_batches

    if given.micro_batches is not None:
        config = with_micro_batches(config, given.micro_batches)
        validate(config, world)
    return count_step(config, rank, given.json)


def count_step(config: Config, rank: int, json_wanted: bool) -> int:
    """Print what a step of a rank does; the exit code. Raises DryRunError."""
    from trainer.dry.device import pretended_gpu
    from trainer.dry.rank import dry_step
    from trainer.dry.table import as_json, as_lines

    errors, console = plain_console(stderr=True), plain_console()
    with errors.status("building the rank", spinner="line") as status:
        record = dry_step(config, rank, pretended_gpu(), status.update)
    if json_wanted:
        print(json.dumps(as_json(record, config.model)))
    else:
        for line in as_lines(record, config.model):
            console.print(line)
    return 0


def verify_ranks(config: Config, as_json: bool) -> int:
    """Print what is found; 1 where ranks do not match, or would wait for each other for ever."""
    from trainer.dry.verify import verify
    from trainer.dry.verify_table import verified_json, verified_lines

    with count_progress("ranks") as progress:
        verified = verify(config, progress)
    if as_json:
        print(json.dumps(verified_json(verified)))
    else:
        for line in verified_lines(verified):
            plain_console().print(line)
    return 0 if verified.sound else 1

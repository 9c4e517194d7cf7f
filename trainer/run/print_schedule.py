"""`launch/train.py --print-schedule`: the recipe of a run, with nothing started."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from parallel.files.outputs import require_outputs
from trainer.config.derived import mesh_of
from trainer.config.schema import Config
from trainer.config.validate import validate
from trainer.errors import ConfigError
from trainer.io.terminal import plain_console
from trainer.recipe.recipe import Recipe
from trainer.recipe.table import as_json, as_lines
from trainer.report.recipe_picture import FORMATS, save_recipe_picture


def add_schedule_options(parser: ArgumentParser) -> None:
    """Options of the table, beside the keys of a config."""
    parser.add_argument(
        "--print-schedule",
        action="store_true",
        help="Check the config, print from which step to which the recipe has which values, and "
        "exit: see docs/recipe.md.",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="With --print-schedule or --dry-run: as one JSON object.",
    )
    parser.add_argument(
        "--picture",
        metavar="FILE",
        type=_picture,
        help="With --print-schedule: draw it, too, into a .png or .svg.",
    )


def schedule_wanted(given: Namespace) -> bool:
    """Whether the table is asked for; ConfigError for an option that makes no sense without."""
    if given.print_schedule:
        return True
    if given.picture:
        raise ConfigError("--picture has no effect without --print-schedule")
    if given.json and not given.dry_run:
        raise ConfigError("--json has no effect without --print-schedule or --dry-run")
    return False


def print_schedule(config: Config, given: Namespace) -> int:
    """The exit code. Raises ConfigError for a config that its own number of ranks cannot run."""
    if given.picture:
        require_outputs({"--picture": given.picture}, ["--picture"])
    validate(config, mesh_of(config).world)
    recipe = Recipe(config)
    if given.json:
        print(json.dumps(as_json(recipe)))
    else:
        console = plain_console()
        for line in as_lines(recipe):
            console.print(line)
    if given.picture:
        save_recipe_picture(recipe, given.picture)
    return 0


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix not in FORMATS:
        raise argparse.ArgumentTypeError(f"must end in {' or '.join(FORMATS)}, got {text!r}")
    return path

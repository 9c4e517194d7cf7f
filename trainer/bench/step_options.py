"""The options of commands that measure steps: how many count, and how many come before those."""

from __future__ import annotations

from typing import Any

from trainer.errors import ConfigError

_MOST = 10_000  # what is noted of each is held in memory


def add_step_options(parser: Any, steps: int, of: str) -> None:
    """--steps and --warmup. steps: the default. of: what each is measured of, as for --help."""
    parser.add_argument("--steps", type=int, default=steps, help=f"Steps to measure, of each {of}.")
    parser.add_argument(
        "--warmup", type=int, default=2, help=f"Steps of each {of} before those that count."
    )


def require_steps(steps: int, warmup: int) -> None:
    """Raise ConfigError for numbers that cannot be measured."""
    for option, given, least in (("--steps", steps, 1), ("--warmup", warmup, 0)):
        if not least <= given <= _MOST:
            raise ConfigError(f"{option} must be between {least} and {_MOST}, got {given}")

"""Types of options for argparse, whose errors say in one short line what would be right."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from math import inf
from pathlib import Path

from parallel.files.shown import shown


def whole_number(least: int, most: int = 2**31) -> Callable[[str], int]:
    """A type for whole numbers from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            range_ = f"of {least} or more" if value < least else f"of at most {most}"
            raise argparse.ArgumentTypeError(f"must be a whole number {range_}, not {shown(text)}")
        return value

    return parse


def number(least: float, most: float = inf) -> Callable[[str], float]:
    """A type for finite numbers from `least` to `most`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -inf
        if not least <= value <= most or value == inf:
            range_ = f"from {least:g} up" if most == inf else f"from {least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"must be a number {range_}, not {shown(text)}")
        return value

    return parse


def name_of(what: str, names: Collection[str]) -> Callable[[str], str]:
    """A type for one of `names`; `what` is what they are names of."""

    def parse(text: str) -> str:
        if text not in names:
            there_are = f"there are {', '.join(names)}"
            raise argparse.ArgumentTypeError(f"no {what} is called {shown(text)}; {there_are}")
        return text

    return parse


def names_of(
    what: str, names: Collection[str], groups: dict[str, list[str]]
) -> Callable[[str], list[str]]:
    """A type for some of `names`, separated by commas, or a word of `groups`; each name once."""
    one = name_of(what, names)

    def parse(text: str) -> list[str]:
        parts = [groups[part] if part in groups else [one(part)] for part in text.split(",")]
        return list(dict.fromkeys(name for part in parts for name in part))

    return parse


def file_ending_in(suffix: str) -> Callable[[str], Path]:
    """A type for a file with this suffix."""

    def parse(text: str) -> Path:
        if Path(text).suffix != suffix:
            raise argparse.ArgumentTypeError(f"must end in {suffix}, not be {shown(text)}")
        return Path(text)

    return parse

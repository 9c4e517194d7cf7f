"""This process's place among the ranks, from the environment variables that torchrun sets."""

from __future__ import annotations

import os
from typing import NamedTuple

from parallel.errors import TandemError

STORE = "TANDEM_STORE_DESCRIPTOR"
"""The variable with the open socket on which rank 0 is to serve the store, if it is given one."""


class LaunchError(TandemError):
    """The environment makes no sense; the message is one line."""

    exit_code = 2


class Place(NamedTuple):
    """A rank of the world, and its number on its machine."""

    rank: int
    world: int
    local_rank: int = 0
    local_world: int = 1


def place_from_environment() -> Place | None:
    """None where no RANK is set: this process was not started as one of several.

    Raises LaunchError for variables that are missing or do not go together.
    """
    if "RANK" not in os.environ:
        return None
    defaults = {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    given = {name: os.environ.get(name, default) for name, default in defaults.items()}
    if all(text.isdecimal() for text in given.values()):
        place = Place(*map(int, given.values()))
        if place.rank < place.world and place.local_rank < place.local_world <= place.world:
            return place
    said = " ".join(f"{name}={text}" for name, text in given.items())
    raise LaunchError(
        f"the environment does not describe a rank: {said}: unset RANK, or use torchrun"
    )

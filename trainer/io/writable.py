"""Whether a file can be written, found out before the work whose result it is to hold."""

from __future__ import annotations

import os
from pathlib import Path

from trainer.errors import ConfigError


def require_writable(option: str, path: Path) -> None:
    """Raise ConfigError, naming `option`, where no file can be written at `path`. Changes nothing:
    folders that are missing may still be made."""
    if path.is_dir():
        raise ConfigError(f"{option} {path}: is a folder, give the name of a file")
    place = path
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if place != path and not place.is_dir():
        raise ConfigError(f"{option} {path}: {place} is not a folder")
    if not os.access(place, os.W_OK):
        raise ConfigError(f"{option} {path}: no permission to write in {place}")

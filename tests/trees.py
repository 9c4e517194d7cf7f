"""What is in a folder, to be compared later."""

from __future__ import annotations

import os
from pathlib import Path


def tree(folder: Path) -> dict[str, str | bytes]:
    """By path in the folder: contents of files, what links lead to, and "folder" or "other"."""
    found: dict[str, str | bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = "folder" if path.is_dir() else "other"
    return found

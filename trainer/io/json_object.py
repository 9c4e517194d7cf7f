"""A JSON object from a file; what is wrong with the file is one line that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json_object(path: Path, error: type[Exception]) -> dict[str, Any]:
    """The object in `path`. Raises `error` where it cannot be read or is something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as reason:
        raise error(f"{path}: cannot be read: {reason.strerror}") from reason
    except ValueError as reason:  # JSON and Unicode errors
        raise error(f"{path}: is not JSON: {reason}: fetch it again") from reason
    if not isinstance(value, dict):
        raise error(f"{path}: must be a JSON object, not a {type(value).__name__}")
    return value

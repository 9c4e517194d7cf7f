"""A JSON object from a file; what is wrong with the file is one line that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from parallel.errors import TandemError
from parallel.files.regular import read_regular

# The largest that is known is the index of a checkpoint with some 150,000 tensors, about 20 MB.
_MOST_BYTES = 1 << 27
# Recursive readers are safe below this depth; no config comes near it.
_MOST_DEPTH = 50


def read_json_object(path: Path, error: type[TandemError]) -> dict[str, Any]:
    """The object in `path`. Raises `error` where it cannot be read or is something else."""
    content = read_regular(path, _MOST_BYTES, error)
    try:
        value = json.loads(content.decode())
    except ValueError as reason:  # JSON and Unicode errors
        raise error(f"{path}: is not JSON: {reason}: fetch it again") from reason
    except RecursionError as reason:
        raise error(f"{path}: is JSON nested too deep to be read: fetch it again") from reason
    if not isinstance(value, dict):
        raise error(f"{path}: must be a JSON object, not a {type(value).__name__}")
    if _is_deeper(value, _MOST_DEPTH):
        raise error(f"{path}: is JSON nested more than {_MOST_DEPTH} deep: fetch it again")
    return value


def _is_deeper(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        inner = (v for outer in level for v in (outer.values() if type(outer) is dict else outer))
        level = [v for v in inner if type(v) in (dict, list)]
        if not level:
            return False
    return True

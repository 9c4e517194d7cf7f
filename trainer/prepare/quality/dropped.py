"""Documents that are left out, one JSON object a line, in a file beside the shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from trainer.errors import DataError

DROPPED_FILE = "dropped.jsonl"
Reason: TypeAlias = Literal["evaluation", "exact", "near"]
REASONS: tuple[Reason, ...] = ("evaluation", "exact", "near")


@dataclass(frozen=True)
class Dropped:
    """number: among all documents. line: where the document begins, or the shared words; 0 where
    the file is the document. of_file, of_line: of what it repeats, or of the evaluation text.
    similarity: estimated. words: shared with the evaluation text."""

    number: int
    reason: Reason
    file: str
    line: int
    bytes: int
    of_file: str
    of_line: int
    similarity: float | None = None
    words: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Without what does not apply."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def read_dropped(path: Path, fingerprint: str) -> frozenset[int]:
    """Their numbers. Raises DataError where the file is not that of the fingerprint."""
    try:
        numbers = [int(json.loads(line)["number"]) for line in _lines(path)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is broken ({error}): start anew with --overwrite") from error
    if numbers_fingerprint(numbers) != fingerprint:
        raise DataError(f"{path}: has other documents than were found: start anew with --overwrite")
    return frozenset(numbers)


def numbers_fingerprint(numbers: list[int]) -> str:
    """Of numbers in their order."""
    return hashlib.sha256(",".join(map(str, numbers)).encode()).hexdigest()


def _lines(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8") as file:
        yield from file

"""What the first pass has found, in a file beside the shards, so that it is run but once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallel.files.outputs import write_file
from parallel.files.regular import read_regular
from trainer.errors import DataError
from trainer.prepare.left_out import LeftOut
from trainer.prepare.quality.dropped import DROPPED_FILE, read_dropped

FINDINGS_FILE = "quality.json"
_MOST_BYTES = 1 << 28


@dataclass(frozen=True)
class Findings:
    """what: of the source and the options. numbers: of documents that are left out. figures: as
    Decide.as_json gives them, and options. examples: as Decide.examples gives them. seconds: of
    this start; 0 where it had been found before."""

    what: str
    numbers: frozenset[int]
    figures: Mapping[str, Any]
    examples: Mapping[str, Any]
    seconds: float = 0.0

    def left_out(self) -> LeftOut:
        """For the preparation that follows."""
        text = json.dumps([self.what, self.figures["fingerprint"]])
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        return LeftOut(self.numbers, fingerprint, {"quality": self.figures})


def save_findings(folder: Path, found: Findings) -> None:
    """Beside the file of what is dropped. Raises WriteError."""
    content = {"what": found.what, "figures": found.figures, "examples": found.examples}
    write_file(folder / FINDINGS_FILE, json.dumps(content, indent=1) + "\n")


def load_findings(folder: Path, what: str) -> Findings | None:
    """None where nothing has been found yet. Raises DataError for another preparation's, and for
    files that are broken."""
    path = folder / FINDINGS_FILE
    if not path.exists():
        return None
    try:
        said = json.loads(read_regular(path, _MOST_BYTES, DataError))
        of, figures, examples = said["what"], said["figures"], said["examples"]
        fingerprint = figures["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is broken ({error}): start anew with --overwrite") from error
    if of != what:
        raise DataError(
            f"{path}: was begun with other files, evaluation texts or options: give the same, or "
            "--overwrite to start anew, or another folder"
        )
    return Findings(what, read_dropped(folder / DROPPED_FILE, fingerprint), figures, examples)

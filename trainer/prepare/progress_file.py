"""How far a preparation is, in a file beside its shards, from which it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from parallel.files.outputs import write_file
from parallel.files.regular import read_regular
from trainer.data.shards.index import SPLITS
from trainer.data.shards.writer import Written
from trainer.errors import DataError
from trainer.prepare.source import Place, Skipped

PROGRESS_FILE = "progress.json"


@dataclass(frozen=True)
class Prepared:
    """what: of the source and all options that say which tokens are written. place: behind the last
    document that is in the shards. bytes: of text up to there."""

    what: str
    place: Place = field(default_factory=Place)
    bytes: int = 0
    skipped: Skipped = field(default_factory=Skipped)
    written: Mapping[str, Written] = field(
        default_factory=lambda: {split: Written() for split in SPLITS}
    )


def save_progress(folder: Path, done: Prepared) -> None:
    """In place of an older one. Raises WriteError."""
    content = asdict(done) | {"written": {k: w.as_json() for k, w in done.written.items()}}
    write_file(folder / PROGRESS_FILE, json.dumps(content))


def load_progress(folder: Path, what: str) -> Prepared:
    """What has been done, or nothing yet. Raises DataError for another preparation's."""
    path = folder / PROGRESS_FILE
    if not path.exists():
        return Prepared(what)
    try:
        said = json.loads(read_regular(path, 1 << 26, DataError))
        found = Prepared(
            said["what"],
            Place(**said["place"]),
            said["bytes"],
            Skipped(**said["skipped"]),
            {split: Written.from_json(said["written"][split]) for split in SPLITS},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is broken ({error}): start anew with --overwrite") from error
    if found.what != what:
        raise DataError(
            f"{path}: was begun with other files, another tokenizer or other options: give the "
            "same, or --overwrite to start anew, or another folder"
        )
    return found

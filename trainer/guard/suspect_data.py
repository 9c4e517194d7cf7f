"""The data of a step that went wrong, for a person to look at: one JSON file per step."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.data.batches import Batches
from trainer.data.tokens import Tokenizer
from trainer.io.no_links import create, remove

FOLDER = "suspect-data"
_CHARACTERS = 400  # of each sequence


def write_suspect_data(
    run: Path, step: int, why: str, sequences: range, batches: Batches, tokenizer: Tokenizer
) -> Path:
    """Write which sequences and documents a step has read, and how each sequence starts; the file.

    step: counted from 1. sequences: running numbers in the training text. Raises OSError.
    """
    rows = [
        {
            "sequence": number,
            "documents": batches.documents(number),
            "text": tokenizer.decode(batches.window(number)).decode(errors="replace")[:_CHARACTERS],
        }
        for number in sequences
    ]
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{step:08d}-sequence-{sequences.start}.json"
    remove(path)  # of the same step before a restart
    create(path, json.dumps({"step": step, "why": why, "sequences": rows}, indent=1).encode())
    return path

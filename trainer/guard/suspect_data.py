"""The data of a step that went wrong, for a person to look at: one JSON file per step."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.data.sequences import Sequences
from trainer.data.tokens import Tokenizer
from trainer.io.no_links import create, remove

FOLDER = "suspect-data"
_CHARACTERS = 400  # of each sequence


def write_suspect_data(
    run: Path, step: int, why: str, numbers: range, sequences: Sequences, tokenizer: Tokenizer
) -> Path:
    """Write which sequences a step has read, where they are from and how each starts; the file.

    step: counted from 1. numbers: of the running sequences of the training text. Raises OSError.
    """
    rows = [
        {
            "sequence": number,
            "from": sequences.origin(number),
            "text": _start(tokenizer.decode(sequences.window(number))),
        }
        for number in numbers
    ]
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{step:08d}-sequence-{numbers.start}.json"
    remove(path)  # of the same step before a restart
    create(path, json.dumps({"step": step, "why": why, "sequences": rows}, indent=1).encode())
    return path


def _start(text: bytes) -> str:
    return text.decode(errors="replace")[:_CHARACTERS]

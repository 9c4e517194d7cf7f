"""What was found in a text, and what became of it, as one HTML page that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parallel.files.outputs import write_file
from trainer.data.shards.index import Index
from trainer.io.page.fill import filled
from trainer.prepare.quality.findings import Findings


def write_report(path: Path, folder: Path, found: Findings, index: Index) -> None:
    """folder: of the shards. Raises WriteError."""
    splits: dict[str, Any] = {
        split: {"documents": index.documents(split), "tokens": index.tokens(split)}
        for split in index.splits
    }
    data = {
        "folder": str(folder),
        "figures": found.figures,
        "examples": found.examples,
        "splits": splits,
        "tokens_of_documents": index.about["tokens_of_documents"],
        "vocabulary": index.vocabulary_size,
    }
    write_file(path, filled(Path(__file__).parent, data))

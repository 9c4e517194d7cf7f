"""Texts that models are evaluated on, which must not be among what they are trained on.

GPT-3 (arXiv 2005.14165, appendix C) looks for 13 words in a row that the two share, and passes over
those that more than 10 documents have: licences, say, and what everybody quotes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from trainer.data.documents import SourceFile, file_documents
from trainer.errors import DataError
from trainer.prepare.quality.words import WordHashes, runs, words_of


@dataclass(frozen=True)
class Evaluation:
    """hashes: of all runs of `ngram` words, sorted, [n]. owners: the text of each, [n]. places: of
    each text its file and line, 0 where the file is the text. short: texts of fewer words, which
    cannot be looked for."""

    ngram: int
    hashes: NDArray[np.uint64]
    owners: NDArray[np.int64]
    places: Sequence[tuple[str, int]]
    short: int

    def fingerprint(self) -> str:
        """The same for the same texts in the same order."""
        found = hashlib.sha256(repr((self.ngram, self.places)).encode())
        found.update(self.hashes.tobytes())
        return found.hexdigest()

    def find(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Of hashes of the words of a document [n]: for each run of `ngram` words its place in
        `hashes`, or -1, [max(n - ngram + 1, 0)]."""
        here = runs(words, self.ngram)
        if not len(self.hashes):
            return np.full(len(here), -1)
        at = np.searchsorted(self.hashes, here)
        at[at == len(self.hashes)] = 0
        return np.where(self.hashes[at] == here, at, -1)


def load_evaluation(files: Sequence[str], field: str, ngram: int) -> Evaluation:
    """Raises DataError for a file that cannot be read, and where no text is long enough."""
    places: list[tuple[str, int]] = []
    found: list[NDArray[np.uint64]] = []
    words, short = WordHashes(), 0
    for file in files:
        if not os.path.isfile(file):
            raise DataError(f"--decontaminate {file}: is no file: give texts or JSON lines")
        before = len(places)
        for document in file_documents(SourceFile(Path(file), True), field, _stop):
            here = runs(words.of(words_of(document.text.decode())), ngram)
            short += not len(here)
            found.append(here)
            places.append((file, document.line))
        if len(places) == before:
            raise DataError(f"--decontaminate {file}: there is no text in it")
    if files and not any(map(len, found)):
        raise DataError(
            f"--decontaminate {files[0]}: no text has {ngram} words, so none can be found: give a "
            "smaller --ngram"
        )
    hashes = np.concatenate([np.empty(0, np.uint64), *found])
    owners = np.repeat(np.arange(len(found)), [len(each) for each in found])
    unique, first = np.unique(hashes, return_index=True)
    return Evaluation(ngram, unique, owners[first], places, short)


def _stop(problem: DataError) -> NoReturn:
    """With the options by which to set it right, in place of the keys of a run."""
    said = str(problem).replace("data.text_field", "--evaluation-field")
    raise DataError(said.replace("data.path", "--decontaminate")) from problem

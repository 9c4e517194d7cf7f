"""Words in a row that many documents have: no sign that one of them was taken from where models are
evaluated."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.prepare.quality.evaluation import Evaluation
from trainer.prepare.quality.examined_file import Entry
from trainer.prepare.quality.words import WordHashes

_EXAMPLES = 10


class Common:
    """Counts the documents that have each run of words of the evaluation texts."""

    def __init__(self, evaluation: Evaluation, most: int) -> None:
        """most: documents may have a run of words before it is common."""
        self._evaluation, self._most = evaluation, most
        self._hashes = WordHashes()
        self._counts: NDArray[np.int64] = np.zeros(len(evaluation.hashes), dtype=np.int64)

    def note(self, entry: Entry) -> None:
        """To be done with all entries before the other methods are of use."""
        runs: dict[int, set[int]] = defaultdict(set)
        for shared in entry.examined.shared:
            runs[shared.place].update(self._find(shared.words.split()).tolist())
        for each in runs.values():
            self._counts[list(each)] += 1

    def first_rare(self, words: str) -> tuple[str, int] | None:
        """Of a stretch of words that are shared: the first run that is not common, and the number
        of the evaluation text that has it."""
        split = words.split()
        runs = self._find(split)
        rare = np.flatnonzero(self._counts[runs] <= self._most)
        if not len(rare):
            return None
        first = int(rare[0])
        run = " ".join(split[first : first + self._evaluation.ngram])
        return run, int(self._evaluation.owners[runs[first]])

    @property
    def count(self) -> int:
        """Of runs that are common."""
        return int((self._counts > self._most).sum())

    def examples(self) -> list[dict[str, Any]]:
        """The texts that have the most common runs, each once: file, line, and documents."""
        owners: dict[int, int] = {}
        for run in np.flatnonzero(self._counts > self._most).tolist():
            owner = int(self._evaluation.owners[run])
            owners[owner] = max(owners.get(owner, 0), int(self._counts[run]))
        most = sorted(owners.items(), key=lambda each: (-each[1], each[0]))[:_EXAMPLES]
        places = self._evaluation.places
        return [
            {"file": places[owner][0], "line": places[owner][1], "documents": documents}
            for owner, documents in most
        ]

    def _find(self, words: list[str]) -> NDArray[np.int64]:
        """All are there: a stretch was cut so."""
        return self._evaluation.find(self._hashes.of(words))

"""What the kept documents are like: lengths, scripts, languages, the largest, and some of them."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.prepare.lengths import histogram, percentiles
from trainer.prepare.quality.examine import SAMPLES, Sample
from trainer.prepare.quality.scripts import KINDS

_LARGEST = 10


@dataclass(frozen=True, order=True)
class _Large:
    bytes: int
    earlier: int  # minus its number: of two of a length the first is shown
    file: str
    line: int


class Statistics:
    """Of documents that are told of in their order. Memory: 8 bytes for each."""

    def __init__(self) -> None:
        self._lengths = array("q")
        self._scripts: NDArray[np.int64] = np.zeros(len(KINDS), dtype=np.int64)
        self._languages: Counter[str] = Counter()
        self._largest: list[_Large] = []
        self._samples: list[tuple[int, str, int, str]] = []

    def note(
        self, number: int, file: str, line: int, length: int, scripts: NDArray[np.int64],
        language: str,
    ) -> None:  # fmt: skip
        """One that is kept. scripts: its characters by kind [len(KINDS)]. language: "" if none was
        told."""
        self._lengths.append(length)
        self._scripts += scripts
        if language:
            self._languages[language] += 1
        heapq.heappush(self._largest, _Large(length, -number, file, line))
        if len(self._largest) > _LARGEST:
            heapq.heappop(self._largest)

    def show(self, samples: Sequence[tuple[str, int, Sample]]) -> None:
        """Samples, with file and line, of documents that are kept."""
        more = [(sample.order, file, line, sample.text) for file, line, sample in samples]
        self._samples = sorted([*self._samples, *more])[:SAMPLES]

    def as_json(self) -> dict[str, Any]:
        """Numbers, for people and programs."""
        lengths = np.array(self._lengths, dtype=np.int64)
        return {
            "documents": len(lengths),
            "bytes": int(lengths.sum()),
            "bytes_of_documents": percentiles(lengths),
            "histogram": histogram(lengths),
            "characters": dict(zip(KINDS, self._scripts.tolist())),
            "languages": dict(sorted(self._languages.items(), key=lambda x: (-x[1], x[0]))),
        }

    def examples(self) -> dict[str, Any]:
        """The largest documents, and samples."""
        largest = [
            {"file": each.file, "line": each.line, "bytes": each.bytes}
            for each in sorted(self._largest, reverse=True)
        ]
        samples = [
            {"file": file, "line": line, "text": text} for _, file, line, text in self._samples
        ]
        return {"largest": largest, "samples": samples}

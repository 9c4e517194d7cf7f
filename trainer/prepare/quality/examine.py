"""What is found in documents one by one, in a worker process: a function of the documents alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from trainer.data.bijection import hashed
from trainer.prepare.quality.evaluation import Evaluation, load_evaluation
from trainer.prepare.quality.language import language_of
from trainer.prepare.quality.options import QualityOptions
from trainer.prepare.quality.scripts import KINDS, count_scripts
from trainer.prepare.quality.signature import PERMUTATIONS, Signer
from trainer.prepare.quality.words import WORD, WordHashes, words_of

DIGEST = 16  # bytes
SAMPLES = 8  # documents that are shown
_SAMPLE_CHARACTERS = 600
_SAMPLE = 4  # what a document's random number is for; trainer/prepare/encoder.py has those below


@dataclass(frozen=True)
class Shared:
    """place: of a document in its chunk. line: of the document at which the words begin. words: a
    stretch of which every `ngram` words in a row are in an evaluation text, with blanks between."""

    place: int
    line: int
    words: str


@dataclass(frozen=True)
class Sample:
    """The beginning of a document. order: a random number; those of the least are shown."""

    place: int
    order: int
    text: str


@dataclass(frozen=True)
class Examined:
    """Of n documents: lengths [n] int64, in bytes; digests [n, DIGEST] uint8; signatures
    [n, PERMUTATIONS] uint32, or [n, 0]; scripts [n, len(KINDS)] int64, characters; languages."""

    lengths: NDArray[np.int64]
    digests: NDArray[np.uint8]
    signatures: NDArray[np.uint32]
    scripts: NDArray[np.int64]
    languages: list[str]
    shared: list[Shared]
    samples: list[Sample]


class Examiner:
    """Raises DataError for evaluation texts that cannot be read, and without datasketch where it is
    needed."""

    def __init__(self, options: QualityOptions) -> None:
        self._seed = options.seed
        self._words = WordHashes()
        self._signer = Signer() if options.dedup == "near" else None
        self.evaluation: Evaluation = load_evaluation(
            options.evaluation, options.evaluation_field, options.ngram
        )

    def examine(self, numbers: Sequence[int], documents: Sequence[bytes]) -> Examined:
        """Documents that have these numbers among all."""
        texts = [document.decode() for document in documents]
        shared: list[Shared] = []
        signed = PERMUTATIONS if self._signer is not None else 0
        signatures = np.empty((len(texts), signed), dtype=np.uint32)
        if self._signer is not None or len(self.evaluation.hashes):
            for place, text in enumerate(texts):
                words = words_of(text)
                hashes = self._words.of(words)
                if self._signer is not None:
                    signatures[place] = self._signer.sign(hashes)
                shared += self._shared(place, text, words, hashes)
        return Examined(
            np.array([len(document) for document in documents], dtype=np.int64),
            np.frombuffer(b"".join(map(_digest, documents)), np.uint8).reshape(-1, DIGEST),
            signatures,
            np.stack([count_scripts(text) for text in texts]).reshape(-1, len(KINDS)),
            [language_of(text) for text in texts],
            shared,
            self._samples(numbers, texts),
        )

    def _shared(
        self, place: int, text: str, words: list[str], hashes: NDArray[np.uint64]
    ) -> list[Shared]:
        begins = np.flatnonzero(self.evaluation.find(hashes) >= 0)
        if not len(begins):
            return []
        lowered = text.lower()
        starts = [match.start() for match in WORD.finditer(lowered)]
        stretches = np.split(begins, np.flatnonzero(np.diff(begins) > 1) + 1)
        found = []
        for first, last in ((int(each[0]), int(each[-1])) for each in stretches):
            line = lowered.count("\n", 0, starts[first]) + 1
            some = " ".join(words[first : last + self.evaluation.ngram])
            found.append(Shared(place, line, some))
        return found

    def _samples(self, numbers: Sequence[int], texts: Sequence[str]) -> list[Sample]:
        orders = [hashed(self._seed, number, _SAMPLE) for number in numbers]
        least = sorted(range(len(texts)), key=orders.__getitem__)[:SAMPLES]
        return [Sample(n, orders[n], texts[n][:_SAMPLE_CHARACTERS]) for n in least]


def _digest(document: bytes) -> bytes:
    """The same where only line ends differ."""
    same = document.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return blake2b(same, digest_size=DIGEST).digest()


def start_examining(options: QualityOptions) -> None:
    """In a new process, before `examine_in_worker`."""
    _examiner_of(options)


def examine_in_worker(
    options: QualityOptions, numbers: Sequence[int], documents: Sequence[bytes]
) -> Examined:
    """As Examiner.examine."""
    return _examiner_of(options).examine(numbers, documents)


@functools.cache
def _examiner_of(options: QualityOptions) -> Examiner:
    """Once per process: evaluation texts may be long."""
    return Examiner(options)

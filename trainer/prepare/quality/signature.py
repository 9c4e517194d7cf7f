"""MinHash signatures of documents, by datasketch: how many of their numbers two of them share is an
estimate of the Jaccard similarity of the documents' shingles (Broder, On the resemblance and
containment of documents, 1997)."""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from trainer.errors import DataError
from trainer.prepare.quality.words import runs

PERMUTATIONS = 128
SHINGLE = 5  # words
SCHEME = "affine32"  # datasketch's permutations of numbers of 32 bits
_AT_ONCE = 1 << 12  # shingles, of 512 bytes of products each
NOTHING = np.uint32(0xFFFFFFFF)  # every number of the signature of a document without words


def datasketch() -> ModuleType:
    """The library. Raises DataError where it is not installed."""
    try:
        import datasketch
    except ImportError as error:
        raise DataError(
            "--dedup near needs datasketch (>=2): pip install 'tandem[quality]', or give "
            "--dedup exact"
        ) from error
    return datasketch


class Signer:
    """Raises DataError without datasketch."""

    def __init__(self) -> None:
        self._empty = datasketch().MinHash(PERMUTATIONS, hashfunc=_itself, scheme=SCHEME)

    def sign(self, words: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Of hashes of the words [n] of a document, its signature [PERMUTATIONS]. A shingle is
        SHINGLE words, or all of fewer."""
        signature = self._empty.copy()
        if len(words):
            shingles = np.unique(runs(words, min(SHINGLE, len(words))) >> np.uint64(32))
            for start in range(0, len(shingles), _AT_ONCE):
                signature.update_batch(shingles[start : start + _AT_ONCE].tolist())
        return np.asarray(signature.hashvalues, dtype=np.uint32)


def _itself(number: int) -> int:
    return number

"""Which documents repeat an earlier one: exactly by their digests, nearly by MinHash LSH.

Locality-sensitive hashing (Indyk and Motwani, 1998) finds those that may be near by bands of their
signatures; how near they are is then estimated by all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.prepare.quality.options import Dedup
from trainer.prepare.quality.signature import NOTHING, PERMUTATIONS, SCHEME, datasketch

_WEIGHTS = (0.1, 0.9)  # a candidate too many is compared, one too few is missed


@dataclass(frozen=True)
class Earlier:
    """number: of the document that is repeated. similarity: estimated; None for the same text."""

    number: int
    similarity: float | None = None


class Repeats:
    """Documents are given in their order; the first of those that repeat each other stays."""

    def __init__(self, dedup: Dedup | None, near: float) -> None:
        """near: least similarity of a near repeat. Raises DataError without datasketch, where it is
        needed."""
        self._digests: dict[bytes, int] | None = None if dedup is None else {}
        self._near = _Near(near) if dedup == "near" else None

    def earlier(self, number: int, digest: bytes, signature: NDArray[np.uint32]) -> Earlier | None:
        """What this document repeats. Where that is nothing, later ones may repeat this one."""
        if self._digests is None:
            return None
        same = self._digests.get(digest)
        if same is not None:
            return Earlier(same)
        found = self._near.earlier(number, signature) if self._near is not None else None
        if found is None:
            self._digests[digest] = number
        return found


class _Near:
    def __init__(self, least: float) -> None:
        library = datasketch()
        self._lean = library.LeanMinHash
        self._least = least
        self._index = library.MinHashLSH(least, PERMUTATIONS, _WEIGHTS)
        self._signatures = np.empty((1024, PERMUTATIONS), dtype=np.uint32)
        self._numbers: list[int] = []  # of those that are kept, in the order of their signatures

    def earlier(self, number: int, signature: NDArray[np.uint32]) -> Earlier | None:
        if (signature == NOTHING).all():
            return None
        minhash = self._lean(hashvalues=signature, seed=1, scheme=SCHEME)
        candidates = np.sort(np.array(self._index.query(minhash), dtype=np.int64))
        if len(candidates):
            similar = (self._signatures[candidates] == signature).mean(axis=1)
            best = int(similar.argmax())  # the first of those that are as near
            if similar[best] >= self._least:
                return Earlier(self._numbers[candidates[best]], float(similar[best]))
        self._keep(number, signature, minhash)
        return None

    def _keep(self, number: int, signature: NDArray[np.uint32], minhash: object) -> None:
        count = len(self._numbers)
        if count == len(self._signatures):
            more = np.empty((count // 2, PERMUTATIONS), dtype=np.uint32)
            self._signatures = np.concatenate((self._signatures, more))
        self._signatures[count] = signature
        self._index.insert(count, minhash, check_duplication=False)
        self._numbers.append(number)

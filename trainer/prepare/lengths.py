"""How long documents are: percentiles of any number of them, and a histogram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.shards.index import Shard

PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)


def percentiles(lengths: NDArray[np.int64]) -> dict[str, float]:
    """Of lengths [n]: by percentile, and the mean; nothing of none."""
    if not len(lengths):
        return {}
    values = np.percentile(lengths, PERCENTILES, method="inverted_cdf").tolist()
    found: dict[str, float] = {f"{p}": value for p, value in zip(PERCENTILES, values)}
    return found | {"mean": round(float(lengths.mean()), 1)}


def histogram(lengths: NDArray[np.int64]) -> list[dict[str, int]]:
    """Of lengths [n] of at least 1, by powers of two: from: the least of the bin, which ends before
    twice that; documents in it, and total, their lengths together."""
    if not len(lengths):
        return []
    powers = np.frexp(lengths.astype(np.float64))[1] - 1
    documents, totals = np.bincount(powers), np.bincount(powers, lengths)
    return [
        {"from": 1 << power, "documents": int(documents[power]), "total": int(totals[power])}
        for power in range(int(powers.min()), len(documents))
    ]


def token_lengths(folder: Path, splits: Mapping[str, Sequence[Shard]]) -> dict[str, dict[str, Any]]:
    """Percentiles of the tokens of documents, ends among them, by split, from the files of ends."""
    found = {}
    for split, shards in splits.items():
        ends = [np.fromfile(folder / f"{shard.name}.ends", "<i8") for shard in shards]
        lengths = [np.diff(each, prepend=0) for each in ends]
        found[split] = percentiles(np.concatenate(lengths) if lengths else np.empty(0, np.int64))
    return found

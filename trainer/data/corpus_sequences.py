"""Packed windows of a split of a corpus in memory, each computed from its number alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data.corpus import Split, Tokens
from trainer.data.shuffle import Purpose, permutation
from trainer.errors import DataError


@dataclass(frozen=True)
class EpochOrder:
    """How an epoch reads a split: documents end to end in a shuffled order, then the windows.

    documents: [n] document numbers in reading order. starts: [n + 1] where each starts in the
    epoch's stream. windows: [windows of the epoch] the window that each turn reads.
    """

    documents: NDArray[np.int64]
    starts: NDArray[np.int64]
    windows: NDArray[np.int64]


class CorpusSequences:
    """The sequences of a split, epoch after epoch; a pure function of seed and number.

    Each epoch shuffles the documents, joins them, and cuts the stream into windows: window i has
    the tokens t = stream[i * S : i * S + S + 1 + lookahead] with S the sequence length, so the
    targets t[1 : S + 1] of an epoch tile the stream and no token is a target twice. A remainder too
    short for a window is not read in this epoch. Then the windows are shuffled, so that a batch
    mixes documents. The stream itself is never built: an epoch costs two int64 per document and one
    per window, and the two latest epochs are kept.
    """

    def __init__(self, split: Split, *, seed: int, sequence_length: int, lookahead: int) -> None:
        """`lookahead`: MTP depth, in tokens.

        Raises DataError if the split has too few tokens for one window.
        """
        self.split = split
        self.seed = seed
        self.sequence_length = sequence_length
        self.window_tokens = sequence_length + 1 + lookahead
        self.sequences_per_epoch = (split.size - 1 - lookahead) // sequence_length
        self._orders: dict[int, EpochOrder] = {}
        if self.sequences_per_epoch < 1:
            raise DataError(
                f"data.sequence_length: {sequence_length} needs {self.window_tokens} tokens "
                f"(1 + {lookahead} to look ahead), but the {split.name} split has {split.size}; "
                "set a shorter one, more text, or another data.validation_fraction"
            )

    def window(self, index: int) -> Tokens:
        """Tokens [S + 1 + lookahead] of the running sequence `index`, counted over all epochs."""
        epoch, turn = divmod(index, self.sequences_per_epoch)
        order = self._order(epoch)
        start = int(order.windows[turn]) * self.sequence_length
        return self._gather(order, start, start + self.window_tokens)

    def origin(self, index: int) -> str:
        """The documents that the running sequence `index` has tokens of, by their number in the
        corpus."""
        epoch, turn = divmod(index, self.sequences_per_epoch)
        order = self._order(epoch)
        start = int(order.windows[turn]) * self.sequence_length
        ends = np.searchsorted(order.starts, [start, start + self.window_tokens - 1], side="right")
        documents = order.documents[ends[0] - 1 : ends[1]].tolist()
        return f"documents {', '.join(map(str, documents))} of the corpus"

    def epochs(self, sequences: int) -> dict[str, float]:
        return {"": sequences / self.sequences_per_epoch}

    def _order(self, epoch: int) -> EpochOrder:
        order = self._orders.get(epoch)
        if order is None:
            shuffle = permutation(self.split.documents.size, self.seed, Purpose.DOCUMENTS, epoch)
            order = EpochOrder(
                documents=self.split.documents[shuffle],
                starts=np.concatenate(([0], np.cumsum(self.split.lengths[shuffle]))),
                windows=permutation(self.sequences_per_epoch, self.seed, Purpose.WINDOWS, epoch),
            )
            # Two, because a step may start in one epoch and end in the next.
            while len(self._orders) >= 2:
                del self._orders[next(iter(self._orders))]
            self._orders[epoch] = order
        return order

    def _gather(self, order: EpochOrder, start: int, end: int) -> Tokens:
        """stream[start:end] of the epoch, from the pieces of the documents that it crosses."""
        corpus = self.split.corpus
        gathered = np.empty(end - start, dtype=corpus.tokens.dtype)
        turn = int(np.searchsorted(order.starts, start, side="right")) - 1
        at = start
        while at < end:
            stop = min(end, int(order.starts[turn + 1]))
            # Where the stream's position 0 would lie, were this document to reach back to it.
            shift = int(corpus.offsets[order.documents[turn]]) - int(order.starts[turn])
            gathered[at - start : stop - start] = corpus.tokens[at + shift : stop + shift]
            at = stop
            turn += 1
        return gathered

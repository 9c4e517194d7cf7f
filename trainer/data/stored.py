"""Windows of a stream that is stored, in an order that is computed: for text of any size."""

from __future__ import annotations

from functools import lru_cache

from trainer.data.bijection import Bijection, hashed
from trainer.data.shards.stream import Stream
from trainer.data.shuffle import Purpose
from trainer.data.tokens import Tokens
from trainer.errors import DataError


class StoredSequences:
    """The windows of a stream, epoch after epoch; a pure function of seed and number.

    Window i has the tokens t = stream[i * S : i * S + S + 1 + lookahead], so the targets t[1 : S +
    1] of an epoch tile the stream and no token is a target twice. Each epoch reads the windows in
    an order of its own, and documents in the order in which they are stored. Memory does not grow
    with the stream.
    """

    def __init__(
        self,
        stream: Stream,
        name: str,
        *,
        seed: int,
        sequence_length: int,
        lookahead: int,
    ) -> None:
        """name: of the text, for a person. lookahead: MTP depth, in tokens. Raises DataError where
        there is not one window."""
        self.stream, self.name, self.seed = stream, name, seed
        self.sequence_length = sequence_length
        self.window_tokens = sequence_length + 1 + lookahead
        self.sequences_per_epoch = (stream.size - 1 - lookahead) // sequence_length
        if self.sequences_per_epoch < 1:
            raise DataError(
                f"data.sequence_length: {sequence_length} needs {self.window_tokens} tokens "
                f"(1 + {lookahead} to look ahead), but {name} has {stream.size:,}: set a shorter "
                "one, or prepare more text"
            )
        self._order = lru_cache(maxsize=2)(self._made_order)

    def window(self, index: int) -> Tokens:
        start = self._start(index)
        return self.stream.read(start, start + self.window_tokens)

    def origin(self, index: int) -> str:
        start = self._start(index)
        return f"{self.name}, tokens {start:,} to {start + self.window_tokens - 1:,}"

    def epochs(self, sequences: int) -> dict[str, float]:
        return {"": sequences / self.sequences_per_epoch}

    def _start(self, index: int) -> int:
        epoch, turn = divmod(index, self.sequences_per_epoch)
        return self._order(epoch)(turn) * self.sequence_length

    def _made_order(self, epoch: int) -> Bijection:
        return Bijection(self.sequences_per_epoch, hashed(self.seed, Purpose.WINDOWS, epoch))

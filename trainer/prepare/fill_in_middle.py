"""Fill in the middle: some documents are written as beginning, end, middle, so that a model learns
to fill gaps (arXiv 2207.14255); DeepSeek-V3 (arXiv 2412.19437, section 4.1) does so with a tenth of
its documents, before they are packed, as prefix, suffix, middle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.data.file_tokenizer import FileTokenizer
from trainer.data.tokens import Tokenizer, Tokens, token_type
from trainer.errors import DataError

MARKS = (
    # DeepSeek-V2 and V3: wide bars, and a low line for a blank
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen 2.5, and ours
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
)
"""Tokens before the beginning, the end and the middle, by tokenizers that have them. DeepSeek's are
called after what is between them: begin, hole, end."""


class FillInMiddle:
    """rate: share of the documents. Raises DataError for a tokenizer without such tokens."""

    def __init__(self, tokenizer: Tokenizer, rate: float) -> None:
        self._rate = rate
        library = tokenizer.library if isinstance(tokenizer, FileTokenizer) else None
        for names in MARKS:
            numbers = [library.token_to_id(name) if library else None for name in names]
            if None not in numbers:
                self._marks = np.array(numbers, dtype=token_type(tokenizer.vocabulary_size))
                return
        known = "; ".join(", ".join(names) for names in MARKS)
        raise DataError(
            "--fill-in-middle needs a tokenizer with three tokens for it, and this one has none of "
            f"{known}: add them to it, or leave the option out"
        )

    def parts(self, text: bytes, random: np.random.RandomState) -> list[bytes]:
        """Beginning, middle and end of the text, cut between any two characters; or all of it."""
        if random.random_sample() >= self._rate:
            return [text]
        characters = text.decode()
        first, second = sorted(random.randint(0, len(characters) + 1, size=2))
        cut = characters[:first], characters[first:second], characters[second:]
        return [part.encode() for part in cut]

    def joined(self, parts: Sequence[Tokens]) -> list[Tokens]:
        """Tokens of beginning, middle and end, with the marks, in the order of training."""
        beginning, middle, end = parts
        begin, hole, fill = self._marks[:1], self._marks[1:2], self._marks[2:]
        return [begin, beginning, hole, end, fill, middle]

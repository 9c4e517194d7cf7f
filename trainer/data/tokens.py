"""Byte-level tokens: a token is a byte, and one more ends a document."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ByteTokenizer:
    """Tokens 0..255 are bytes; 256 ends a document. Any text is its UTF-8 bytes."""

    vocabulary_size: int = 257
    end_of_document: int = 256

    def encode(self, text: str | bytes) -> NDArray[np.uint16]:
        """The tokens [bytes] of `text`, without an end of document."""
        content = text.encode() if isinstance(text, str) else text
        return np.frombuffer(content, dtype=np.uint8).astype(np.uint16)

    def decode(self, tokens: NDArray[np.integer]) -> bytes:
        """The bytes of `tokens` [n], ends of documents left out; ValueError for other tokens."""
        kept = tokens[tokens != self.end_of_document]
        if kept.size and not 0 <= kept.min() <= kept.max() <= 255:
            raise ValueError(f"tokens {kept.min()}..{kept.max()} where bytes are 0..255")
        return kept.astype(np.uint8).tobytes()

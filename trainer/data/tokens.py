"""What a tokenizer does, and the built-in one: a token is a byte, and one more ends a document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

# uint16 where the vocabulary fits, else uint32: see token_type.
Tokens = NDArray[np.unsignedinteger]


class Tokenizer(Protocol):
    """Text to tokens 0 .. vocabulary_size - 1 and back; `unit` names tokens for a person."""

    @property
    def vocabulary_size(self) -> int: ...

    @property
    def end_of_document(self) -> int: ...

    @property
    def unit(self) -> str: ...

    def encode(self, text: str | bytes) -> Tokens:
        """The tokens [n] of `text`, of token_type, none added: no begin, no end of document.

        The end of document written out in `text` is text and gives other tokens. ValueError for
        what is not UTF-8.
        """
        ...

    def encode_documents(self, documents: Iterable[bytes]) -> Iterator[Tokens]:
        """The tokens [n] of each document in turn, as from `encode`."""
        ...

    def decode(self, tokens: NDArray[np.integer]) -> bytes:
        """The UTF-8 of `tokens` [n], ends of documents left out; a character may be incomplete.

        ValueError for tokens outside the vocabulary. TextStream gives text token by token.
        """
        ...


@dataclass(frozen=True)
class ByteTokenizer:
    """Tokens 0..255 are bytes; 256 ends a document. Any text is its UTF-8 bytes."""

    vocabulary_size: int = 257
    end_of_document: int = 256
    unit: str = "bytes"

    def encode(self, text: str | bytes) -> Tokens:
        """The tokens [bytes] of `text`, without an end of document. Any bytes will do."""
        content = text.encode() if isinstance(text, str) else text
        return np.frombuffer(content, dtype=np.uint8).astype(np.uint16)

    def encode_documents(self, documents: Iterable[bytes]) -> Iterator[Tokens]:
        """The tokens [bytes] of each document in turn."""
        return map(self.encode, documents)

    def decode(self, tokens: NDArray[np.integer]) -> bytes:
        """The bytes of `tokens` [n], ends of documents left out; ValueError for other tokens."""
        kept = tokens[tokens != self.end_of_document]
        if kept.size and not 0 <= kept.min() <= kept.max() <= 255:
            raise ValueError(f"tokens {kept.min()}..{kept.max()} where bytes are 0..255")
        return kept.astype(np.uint8).tobytes()


def is_of_bytes(tokenizer: Tokenizer) -> bool:
    """Whether each token is one byte, or the end of a document: built in, or from a file."""
    if tokenizer.vocabulary_size != ByteTokenizer.vocabulary_size:
        return False
    others = [n for n in range(tokenizer.vocabulary_size) if n != tokenizer.end_of_document]
    return {tokenizer.decode(np.array([token])) for token in others} == {
        bytes([byte]) for byte in range(256)
    }


def token_type(vocabulary_size: int) -> DTypeLike:
    """The smallest type of Tokens that holds each token of a vocabulary."""
    return np.uint16 if vocabulary_size <= 1 << 16 else np.uint32


def byte_characters() -> str:
    """The 256 characters that stand for bytes 0..255 in the tokens of a byte-level vocabulary.

    GPT-2's alphabet (`bytes_to_unicode` in openai/gpt-2, src/encoder.py): a byte that Latin-1
    prints stands for itself, the others for U+0100 onwards in their order.
    """
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printed else next(others)) for byte in range(256))

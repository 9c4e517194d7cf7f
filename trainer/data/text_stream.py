"""Text from tokens as they come, for a console: no character is ever broken or taken back."""

from __future__ import annotations

import codecs

import numpy as np

from trainer.data.tokens import Tokenizer

# What a tokenizer that is not byte-level decodes a part of a character to.
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()
# A character has at most this many bytes of UTF-8, so at most this many tokens.
_CHARACTER_TOKENS = 4


class TextStream:
    """The text of tokens, given one by one.

        stream = TextStream(tokenizer)
        for token in prompt:          # where the prompt ends decides how the answer starts
            stream.push(token)
        for token in generate():
            print(stream.push(token), end="", flush=True)
        print(stream.end())

    For bytes and byte-level vocabularies all texts together are exactly
    `tokenizer.decode(tokens).decode(errors="replace")`. Each push costs the same, however long the
    text is: only the tokens of the last characters are decoded again.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._tokens: list[int] = []  # those of the last text given, then those held back
        self._given = 0  # how many of them are given

    def push(self, token: int) -> str:
        """The text that is certain with this token, "" inside a character.

        ValueError for a token outside the vocabulary.
        """
        if token == self._tokenizer.end_of_document:  # even where it comes inside a character
            return ""
        self._tokens.append(token)
        content = self._new()
        held = len(self._tokens) - self._given
        if not content or (content.endswith(_REPLACEMENT) and held < _CHARACTER_TOKENS):
            return ""
        del self._tokens[: self._given]
        self._given = len(self._tokens)
        return self._utf8.decode(content)

    def end(self) -> str:
        """What was held back, U+FFFD for a character that never became whole. Push no more."""
        return self._utf8.decode(self._new(), final=True)

    def _new(self) -> bytes:
        """The bytes of the tokens held back, as they read after those given."""
        before = self._decode(self._tokens[: self._given])
        whole = self._decode(self._tokens)
        if whole.startswith(before):
            return whole[len(before) :]
        return self._decode(self._tokens[self._given :])

    def _decode(self, tokens: list[int]) -> bytes:
        return self._tokenizer.decode(np.array(tokens, dtype=np.int64))

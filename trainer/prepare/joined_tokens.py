"""Tokens that join punctuation and line breaks, of which some are split: a prompt that ends before
its line break would else end in a way that training has never seen (DeepSeek-V3, arXiv 2412.19437,
section 4.1: "we randomly split a certain proportion of such combined tokens")."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from trainer.data.tokens import Tokenizer, Tokens

_JOINED = re.compile(rb"([!-/:-@\[-`{-~]+)([\r\n]+)")


class JoinedTokens:
    """rate: share of such tokens that is split."""

    def __init__(self, tokenizer: Tokenizer, rate: float) -> None:
        self._rate = rate
        contents = [
            tokenizer.decode(np.array([number])) for number in range(tokenizer.vocabulary_size)
        ]
        number_of: dict[bytes, int] = {}
        for number, content in enumerate(contents):
            number_of.setdefault(content, number)
        # Of each token, the two that it is split into; -1 where it is not.
        self._parts: NDArray[np.int64] = np.full((len(contents), 2), -1, dtype=np.int64)
        for number, content in enumerate(contents):
            match = _JOINED.fullmatch(content)
            if match and match[1] in number_of and match[2] in number_of:
                self._parts[number] = number_of[match[1]], number_of[match[2]]

    @property
    def count(self) -> int:
        """How many tokens can be split."""
        return int((self._parts[:, 0] >= 0).sum())

    def split(self, tokens: Tokens, random: np.random.RandomState) -> Tokens:
        """The tokens, some of them split; their bytes stay the same."""
        places = np.flatnonzero(self._parts[tokens, 0] >= 0)
        places = places[random.random_sample(len(places)) < self._rate]
        if not len(places):
            return tokens
        first, second = self._parts[tokens[places]].T
        out = np.insert(tokens, places + 1, second.astype(tokens.dtype))
        out[places + np.arange(len(places))] = first.astype(tokens.dtype)
        return out

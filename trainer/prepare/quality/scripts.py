"""In which scripts a text is written: its characters counted by kind."""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
from numpy.typing import NDArray

KINDS = ("Latin", "CJK", "Cyrillic", "other letters", "digits", "punctuation", "blanks", "other")
"""Punctuation: symbols too. Blanks: line ends too. CJK: Chinese, Japanese and Korean."""
_CJK_NAMES = ("CJK ", "HIRAGANA ", "KATAKANA ", "HANGUL ", "BOPOMOFO ", "HALFWIDTH KATAKANA ")
_HAN = 0x20000  # from here on two planes of ideographs, and next to nothing else


def count_scripts(text: str) -> NDArray[np.int64]:
    """Characters by KINDS, [len(KINDS)]."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    kinds = _table()[np.minimum(codes, _HAN)]
    return np.bincount(kinds, minlength=len(KINDS)).astype(np.int64)


@functools.cache
def _table() -> NDArray[np.uint8]:
    """The place in KINDS of each code up to the first of _HAN, [_HAN + 1]."""
    kinds = [KINDS.index(_kind(chr(code))) for code in range(_HAN + 1)]
    return np.array(kinds, dtype=np.uint8)


def _kind(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] in "LM":
        name = unicodedata.name(character, "")
        if name.startswith(_CJK_NAMES):
            return "CJK"
        if "LATIN" in name:
            return "Latin"
        return "Cyrillic" if name.startswith("CYRILLIC") else "other letters"
    if character in "\t\n\r\v\f" or category[0] == "Z":
        return "blanks"
    return {"N": "digits", "P": "punctuation", "S": "punctuation"}.get(category[0], "other")

"""Which values of a key's type are allowed: a limit stands beside its field, validate.py checks it,
and --help and errors state it in the same words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Range:
    """Numbers between two ends, one given on each side: least and most belong to the range, above
    and below do not. NaN lies in no range."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, number: float) -> bool:
        return (
            (self.least is None or self.least <= number)
            and (self.above is None or self.above < number)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"from {_digits(self.least)} to {_digits(self.most)}"
        ends = (
            (self.least, "{} or more"),
            (self.above, "more than {}"),
            (self.most, "at most {}"),
            (self.below, "less than {}"),
        )
        return ", ".join(words.format(_digits(end)) for end, words in ends if end is not None)


@dataclass(frozen=True)
class Text:
    """Text that a regular expression matches as a whole; words say what that is."""

    pattern: str
    words: str

    def __contains__(self, text: str) -> bool:
        return re.fullmatch(self.pattern, text) is not None

    def __str__(self) -> str:
        return self.words


Limit: TypeAlias = Range | Text

FOLDER_NAME = Text(
    r"(?!\.+$)[\w.+=,@-]{1,100}",
    "the name of a folder: letters, digits and . _ + = , @ - only, at most 100",
)
# Control characters break lines and terminals; lone surrogates are bytes that were not UTF-8.
LINE = Text(
    r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{1,4000}",
    "one line of plain text",
)
SOURCE = Text(
    r"(?P<name>[\w.-]{1,40}): (?P<path>[^\x00-\x1f\x7f]{1,4000})"
    r" at (?P<weights>[^\x00-\x1f]{1,1000})",
    "sources such as `code: shards/code at 0.3 until 10B tokens, 0.5`",
)
TEXT = Text(r"[^\ud800-\udfff]{0,100000}", "text in UTF-8 of at most 100,000 characters")


def _digits(end: float) -> str:
    return f"{end:,}" if isinstance(end, int) else f"{end:,.15g}"

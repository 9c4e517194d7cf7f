"""Values and names from outside, each as one short printable line."""

from __future__ import annotations

import reprlib


def shown(value: object) -> str:
    """The repr of `value`, shortened: whatever its size or depth, even if it contains itself."""
    return printable(_Short().repr(value))


def printable(text: object) -> str:
    """`text` on one line, with everything escaped that a terminal would act on or cannot show."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxdict = 4
        self.maxlevel, self.maxstring, self.maxother = 3, 60, 60

    def repr_int(self, value: int, level: int) -> str:
        if value.bit_length() > 128:  # Python refuses to write out the largest
            return f"a number of {value.bit_length()} bits"
        return repr(value)

"""Text for a terminal: what paths, names and messages of others contain must not steer it."""

from __future__ import annotations

import contextlib
import os
import sys
import unicodedata

from rich.console import Console

# Control and format characters, surrogates of undecodable bytes, separators of lines: escaped.
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: object) -> str:
    """`text` on one line, with all that could steer a terminal written as an escape (`\\x1b`)."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _UNPRINTABLE
        else character
        for character in str(text)
    )


def plain_console(stderr: bool = False, quiet: bool = False, width: int | None = None) -> Console:
    """A rich console that takes what it prints literally: no [markup], no :emoji:, no colours for
    numbers. Columns of a rich.progress.Progress need `markup=False` too. Escapes of the terminal
    are not its business: see `printable`."""
    return Console(
        stderr=stderr, quiet=quiet, width=width, soft_wrap=True,
        markup=False, emoji=False, highlight=False,
    )  # fmt: skip


def show_cursor() -> None:
    """Undo what a progress bar did to the terminal, where one may have been cut off."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if os.isatty(stream.fileno()):
                os.write(stream.fileno(), b"\x1b[?25h")
                return

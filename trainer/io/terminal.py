"""The terminal: rich consoles that print literally, and the cursor."""

from __future__ import annotations

import contextlib
import os
import sys

from rich.console import Console


def plain_console(stderr: bool = False, quiet: bool = False, width: int | None = None) -> Console:
    """A rich console that takes what it prints literally: no [markup], no :emoji:, no colours for
    numbers. Columns of a rich.progress.Progress need `markup=False` too. It leaves terminal escapes
    to parallel/files/shown.py."""
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

"""Arguments of the commands that take no config of a run."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import NoReturn

from parallel.files.shown import printable


class CommandParser(argparse.ArgumentParser):
    """A parser whose --help ends with examples, and whose errors are one line and exit code 2."""

    def __init__(self, prog: str, description: str | None = None, examples: str = "") -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """One line, without the usage around it."""
        self.exit(2, f"{self.prog}: {printable(message)}\n")

    def refuse(self, given: argparse.Namespace, options: Iterable[str], why: str) -> None:
        """End with an error that says `why` if one of `options` was given: it would be ignored.

        Their defaults must be None or False.
        """
        for option in options:
            value = getattr(given, option.removeprefix("--").replace("-", "_"))
            if value is not None and value is not False:
                self.error(f"{option} has no effect {why}")

"""Arguments of the commands that take no config of a run."""

from __future__ import annotations

import argparse
from typing import NoReturn


class CommandParser(argparse.ArgumentParser):
    """A parser whose --help ends with examples, and whose errors are one line and exit code 2."""

    def __init__(self, prog: str, description: str | None, examples: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """One line, without the usage around it."""
        self.exit(2, f"{self.prog}: {message}\n")

"""The base of all errors that can be foreseen."""

from __future__ import annotations

from collections.abc import Sequence


class TandemError(Exception):
    """A failure that one line explains to the person at the console, without a traceback.

    exit_code: what a command that ends with it returns: 1, or 2 where the user asked for what
    cannot be run (a config, a table, arguments).
    """

    exit_code = 1


class LostRankError(TandemError):
    """Other ranks do not answer. speaks: whether this is the rank that reports it. lost: those
    that do not answer, as far as that is known."""

    def __init__(self, message: str, speaks: bool, lost: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.speaks, self.lost = speaks, lost

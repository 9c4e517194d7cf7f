"""What is done about a document that cannot be read: the reader of it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, TypeAlias

from trainer.errors import DataError

Bad: TypeAlias = Callable[[DataError], None]
"""Told of a document that cannot be read; raises that, or lets reading go on after it."""


def stop(problem: DataError) -> NoReturn:
    """A Bad that lets nothing pass."""
    raise problem

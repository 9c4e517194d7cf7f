"""Errors of a run that one line explains."""

from __future__ import annotations


class ConfigError(ValueError):
    """A config that cannot be run."""


class RunError(RuntimeError):
    """The run cannot start or go on; the message is one line for the person at the console."""


class Stopped(Exception):
    """The run was asked to stop and did, with nothing lost. signal: the number that asked."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal

"""Errors that one line explains; trainer/run/exit.py turns them into that line and an exit code."""

from __future__ import annotations

from parallel.errors import TandemError


class ConfigError(TandemError):
    """A config, or a combination of options, that cannot be run."""

    exit_code = 2


class DataError(TandemError):
    """The corpus or the tokenizer cannot be read or used."""


class RunError(TandemError):
    """The run cannot start or continue."""


class CheckpointError(RunError):
    """A checkpoint that cannot be read or written; the line names the file or the tensor."""


class Stopped(TandemError):
    """The run was asked to stop and did, with nothing lost. signal: the number that asked."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal


class UnhealthyError(RunError):
    """Training on would harm the weights or change nothing; every rank raises it. The weights are
    those of the last good step."""


class NonFiniteError(UnhealthyError):
    """The loss or the gradient norm is not finite, again and again."""


class SpikeError(UnhealthyError):
    """The loss spikes again and again."""


class CopiesDifferError(RunError):
    """Ranks that should hold the same bits do not: one of them has computed something wrong."""

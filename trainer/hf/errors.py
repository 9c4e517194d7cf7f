"""What can be wrong with a checkpoint on disk."""

from __future__ import annotations

from trainer.errors import RunError


class CheckpointError(RunError):
    """A checkpoint that cannot be read or written; one line that names the file or the tensor."""

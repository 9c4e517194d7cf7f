"""Writing a checkpoint in the background, and reading one, on all ranks together."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException

from parallel.errors import TandemError
from trainer.checkpoint.state.index import About, Index
from trainer.checkpoint.state.plan import LoadFragments, SaveFragments, by_key
from trainer.checkpoint.state.snapshot import Snapshot
from trainer.checkpoint.state.steps import PartialStep
from trainer.checkpoint.state.storage import FragmentReader, FragmentWriter
from trainer.errors import CheckpointError
from trainer.optim.state import Fragment

# The library warns of what is meant: a run of one process has no process group.
warnings.filterwarnings("ignore", "torch.distributed is disabled", module="torch.distributed")


@dataclass(frozen=True)
class Outcome:
    """How the writing of a checkpoint has ended.

    step: steps finished. seconds: from the start of the writing. nbytes: data of all ranks, on the
    first rank. error: why there is no checkpoint; None if there is one. warning: what went wrong
    beside that, or "".
    """

    step: int
    seconds: float
    nbytes: int
    error: str | None
    warning: str


class BackgroundWriter:
    """Writes one checkpoint at a time, in a thread, on all ranks together.

    group: of the whole world, gloo, and used by nothing else, since the thread's collectives mix
    with those of training; None where there is one process.
    """

    def __init__(self, rank: int, group: dist.ProcessGroup | None) -> None:
        self._rank, self._group = rank, group
        self._snapshot = Snapshot()
        self._thread: threading.Thread | None = None
        self._outcome: Outcome | None = None
        self.written = self.total = 0
        """Bytes of this rank, of the checkpoint that is being written."""

    def start(
        self,
        step: int,
        fragments: Sequence[Fragment],
        open_step: Callable[[], PartialStep],
        about: About | None,
    ) -> None:
        """Copy this rank's fragments, then write them while the caller goes on. None may be being
        written. step: steps finished. open_step, about: as FragmentWriter has them."""
        assert not self.busy()
        copies = self._snapshot.take(fragments)
        self.written, self.total = 0, sum(copy.values.nbytes for copy in copies)
        self._outcome = None
        writer = FragmentWriter(self._rank, open_step, about, self._wrote)
        self._thread = threading.Thread(
            target=self._write, args=(step, copies, writer), name="checkpoint", daemon=True
        )
        self._thread.start()

    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until none is being written, or `seconds`."""
        if self._thread is not None:
            self._thread.join(seconds)

    def outcome(self) -> Outcome | None:
        """How the last one has ended, once it has; each is told once."""
        if self.busy():
            return None
        outcome, self._outcome = self._outcome, None
        return outcome

    def _wrote(self, count: int) -> None:
        self.written += count

    def _write(self, step: int, fragments: list[Fragment], writer: FragmentWriter) -> None:
        start, error = time.monotonic(), None
        try:
            dcp.save(
                by_key(fragments),
                storage_writer=writer,
                planner=SaveFragments(),
                process_group=self._group,
                no_dist=self._group is None,
            )
        except BaseException as reason:  # it must not end training; the library's is no Exception
            error = explained(reason)
            writer.discard()
        seconds = time.monotonic() - start
        self._outcome = Outcome(step, seconds, writer.nbytes, error, writer.warning)


def read_fragments(
    folder: Path,
    index: Index,
    fragments: Sequence[Fragment],
    group: dist.ProcessGroup | None,
    read: Callable[[int], None] = lambda count: None,
) -> None:
    """Fill the fragments of this rank from a checkpoint that any layout has written.

    Collective over the world. If any rank cannot read what it needs, all raise CheckpointError, and
    the fragments have changed in part. read(n): n more bytes have been read.
    """
    try:
        dcp.load(
            by_key(fragments),
            storage_reader=FragmentReader(folder, index, read),
            planner=LoadFragments(),
            process_group=group,
            no_dist=group is None,
        )
    except CheckpointException as error:
        raise CheckpointError(explained(error)) from error


def explained(error: BaseException) -> str:
    """What went wrong, in one line: of several ranks, the first that says more than that another
    has failed."""
    if isinstance(error, CheckpointException):
        rank, (first, _) = min(error.failures.items())
        return f"rank {rank}: {explained(first)}"
    if isinstance(error, TandemError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"

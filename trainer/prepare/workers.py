"""Chunks of documents given to processes, and what comes of each, in the order of the chunks."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from typing import Generic, TypeAlias, TypeVar

from trainer.errors import DataError
from trainer.prepare.source import Chunk

T = TypeVar("T")
Work: TypeAlias = Callable[[Sequence[int], Sequence[bytes]], T]
_AHEAD = 2  # chunks that wait for each worker


@dataclass(frozen=True)
class Workers(Generic[T]):
    """count: processes; with 0, this one does the work. start: called in each of them first. work:
    of numbers and documents, done there; here: the same, done in this process."""

    count: int
    start: Callable[[], None]
    work: Work[T]
    here: Work[T]

    def results(self, chunks: Iterator[Chunk]) -> Iterator[tuple[Chunk, T]]:
        """Each chunk with what comes of it. Raises DataError where a process ends on its own."""
        if not self.count:
            for chunk in chunks:
                yield chunk, self.here(chunk.numbers, chunk.documents)
            return
        # spawn: tokenizers must not be forked once it has run threads.
        context = get_context("spawn")
        with ProcessPoolExecutor(self.count, context, _begin, (self.start,)) as pool:
            waiting: deque[tuple[Chunk, Future[T]]] = deque()
            try:
                for chunk in chunks:
                    task = pool.submit(self.work, chunk.numbers, chunk.documents)
                    waiting.append((chunk, task))
                    if len(waiting) > _AHEAD * self.count:
                        yield _result(*waiting.popleft())
                while waiting:
                    yield _result(*waiting.popleft())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _begin(start: Callable[[], None]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start()


def _end_with_parent() -> None:
    """A pool's processes would wait for ever for work from one that was killed."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _result(chunk: Chunk, task: Future[T]) -> tuple[Chunk, T]:
    try:
        return chunk, task.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process has ended on its own, perhaps for want of memory: start again with "
            "fewer --workers; what was written stays"
        ) from error

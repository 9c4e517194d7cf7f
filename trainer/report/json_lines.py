"""metrics.jsonl: one JSON object per step, and one per event."""

from __future__ import annotations

import json
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.errors import RunError
from trainer.io.no_links import open_plain
from trainer.report.events import LASTING, Event
from trainer.report.metrics import Values

FILE = "metrics.jsonl"


class JsonLines:
    """A sink that writes each step and each event as it comes."""

    def __init__(self, folder: Path, done: int | None = None) -> None:
        """Make the file, which must not be there yet; or, of a run that goes on after `done` steps,
        go on with it, less what it has of later steps. Raises RunError where that fails.

        reached: steps that the file had, those included that have been cut off.
        """
        path = folder / FILE
        flags = os.O_CREAT | (os.O_EXCL | os.O_WRONLY if done is None else os.O_RDWR | os.O_APPEND)
        try:
            handle = open_plain(path, flags)
            kept, self.reached = ([], 0) if done is None else _cut(handle, done)
        except OSError as error:
            raise RunError(f"run.dir: cannot write {path}: {error.strerror}") from error
        self._name, self._warned = path, False
        self._file = open(handle, "a")  # noqa: SIM115 (closed by close)
        for row in kept:
            self._write(row)

    def write(self, step: int, values: Values) -> None:
        """A file that cannot be written (a full disk) costs its lines, with a warning."""
        row: dict[str, Any] = {"step": step}
        for name, recorded in values.items():
            value = recorded.value
            row[name] = str(value) if isinstance(value, Path) else value
        self._write(row)

    def event(self, event: Event) -> None:
        """Write an event; what tells it from a step is its first key."""
        self._write({"event": event.kind, "step": event.step, "text": event.text})

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self._warn(error)

    def _write(self, row: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()  # a run that dies keeps all steps that it finished
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            print(f"cannot write {self._name}: {error.strerror}; training on", file=sys.stderr)
        self._warned = True


def _cut(handle: int, done: int) -> tuple[list[dict[str, Any]], int]:
    """Cut off the end of the file, from the first line after that of step `done` - 1; the events
    there that last, in their order, and how many steps there were. Only the end is read: a file
    may have many gigabytes."""
    kept, reached = [], 0
    size = os.fstat(handle).st_size
    for start, line in _lines_backwards(handle):
        row = _row(line)
        if row is None:  # it was cut off
            size = start
            continue
        if "event" not in row:
            reached = reached or row["step"] + 1
            if row["step"] < done:
                break
        size = start
        if row.get("event") in LASTING or ("event" in row and row["step"] < done):
            kept.append(row)
    os.ftruncate(handle, size)
    return kept[::-1], reached


def _lines_backwards(handle: int) -> Iterator[tuple[int, bytes]]:
    """Each line and where it starts, the last one first."""
    end = os.fstat(handle).st_size
    if not end:  # which cannot be mapped
        return
    with mmap.mmap(handle, 0, access=mmap.ACCESS_READ) as content:
        while end:
            start = content.rfind(b"\n", 0, end - 1) + 1
            yield start, content[start:end]
            end = start


def _row(line: bytes) -> dict[str, Any] | None:
    """A line as a step or an event; None where it is neither."""
    try:
        row = json.loads(line)
        if isinstance(row["step"], int) and line.endswith(b"\n"):
            return dict(row)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return None

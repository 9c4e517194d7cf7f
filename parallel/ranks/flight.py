"""The flight recorder: what each rank was last doing, readable whatever has become of the rank.

A rank writes each of its moves into a small file of its own, a ring of records that has its full
size from the start. What was written is there for the others when the rank has been stopped, hangs,
or was killed. A write is a pwrite into the page cache, about 2 microseconds; not a mapping, since a
page that the disk has no room for would kill the process that touches it.
"""

from __future__ import annotations

import os
import struct
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

_RECORD = struct.Struct("<Qd40s120s16s64s")  # number, time, phase, item, layer, move
_RECORDS = 64
_NOTHING = nullcontext()


@dataclass(frozen=True)
class Position:
    """What a rank was doing from `since` on, in seconds of time.time.

    phase: such as "in step 17". item: of the table, or what comes between items. layer: of the
    model. move: computing after which collective, or a collective that is started or waited for.
    """

    since: float
    phase: str
    item: str
    layer: str
    move: str


class FlightRecorder:
    """This rank's file; a recorder of events as the tape and the executor take it.

    failed: why nothing is recorded any more, if so. Training goes on without.
    """

    def __init__(self, file: Path) -> None:
        """Make the file, in place of one that an earlier process has left. Raises OSError."""
        with suppress(FileNotFoundError):
            file.unlink()  # a process that still writes the old one shall not write into this
        self.handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        empty = bytes(_RECORD.size * _RECORDS)
        while empty:  # a disk that is nearly full takes a part, and refuses the next
            empty = empty[os.write(self.handle, empty) :]
        self.failed: str | None = None
        self._number = 0
        self._phase = self._item = b""
        self._moves: dict[tuple[str, str, str, str], tuple[bytes, bytes]] = {}

    def phase(self, phase: str) -> None:
        """What this rank does from now on, in the large: "in step 17"."""
        self._phase, self._item = _bytes(phase), b""
        self._write(b"", b"")

    def note(self, doing: str) -> None:
        self._item = _bytes(doing)
        self._write(b"", b"")

    def span(
        self, label: str, what: str, name: str, layer: str = ""
    ) -> AbstractContextManager[None]:
        key = label, what, name, layer
        move = self._moves.get(key)
        if move is None:
            move = self._moves[key] = _bytes(layer), _bytes(_said(label, what, name))
        self._write(*move)
        return _NOTHING

    def flight(self, label: str, name: str, start: float, pending: object) -> None:
        return None

    def _write(self, layer: bytes, move: bytes) -> None:
        if self.failed is not None:
            return
        self._number += 1
        record = _RECORD.pack(self._number, time.time(), self._phase, self._item, layer, move)
        try:
            os.pwrite(self.handle, record, self._number % _RECORDS * _RECORD.size)
        except OSError as error:
            self.failed = error.strerror


def last_positions(file: Path) -> list[Position]:
    """What a rank has left in its file, oldest first; nothing where there is no such file."""
    try:
        content = file.read_bytes()
    except OSError:
        return []
    whole = len(content) - len(content) % _RECORD.size
    records = sorted(record for record in _RECORD.iter_unpack(content[:whole]) if record[0])
    return [Position(since, *map(_text, texts)) for _, since, *texts in records]


def _said(label: str, what: str, name: str) -> str:
    verbs = {
        "compute": "computing ", "start": "starting ", "wait": "waiting for ",
        "recompute": "recomputing ",
    }  # fmt: skip
    return f"{verbs.get(what, '')}{name} in {label}"


def _bytes(text: str) -> bytes:
    return text.encode(errors="replace")


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode(errors="replace")

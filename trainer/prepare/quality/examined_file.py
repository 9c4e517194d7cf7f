"""What was found in documents so far, in a file from which an interrupted first pass goes on.

Each entry is its length and CRC-32, and an archive of numpy's; the first says whose the file is.
What lies behind the last whole entry is cut off.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from trainer.prepare.quality.examine import Examined, Sample, Shared
from trainer.prepare.source import Chunk, Place, Skipped

_FRAME = struct.Struct("<QI")
_ARRAYS = ("lengths", "digests", "signatures", "scripts")


@dataclass(frozen=True)
class Entry:
    """A chunk and what was found in it, without its text. numbers, files, lines: of its documents
    [n] int64."""

    numbers: NDArray[np.int64]
    files: NDArray[np.int64]
    lines: NDArray[np.int64]
    end: Place
    skipped: Skipped
    examined: Examined


def entry_of(chunk: Chunk, examined: Examined) -> Entry:
    where = np.array(chunk.where, dtype=np.int64).reshape(-1, 2)
    numbers = np.array(chunk.numbers, dtype=np.int64)
    return Entry(numbers, where[:, 0], where[:, 1], chunk.end, chunk.skipped, examined)


class ExaminedFile:
    """At `path`, of the first pass that `what` names; another's is begun anew."""

    def __init__(self, path: Path, what: str) -> None:
        """Raises OSError."""
        self._path, name = path, what.encode()
        self._file = open(path, "a+b")  # noqa: SIM115 (closed by `close`)
        self._file.seek(0)
        whole = 0
        for place, content in enumerate(_frames(self._file)):
            if place == 0 and content != name:
                break
            whole = self._file.tell()
        self._file.truncate(whole)
        if not whole:
            self._append(name)

    def entries(self) -> Iterator[Entry]:
        """All that are there, from the first."""
        with open(self._path, "rb") as file:
            for place, content in enumerate(_frames(file)):
                if place:
                    yield _unpacked(content)

    def append(self, entry: Entry) -> None:
        """Raises OSError where the disk is full."""
        self._append(_packed(entry))

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        self.close()
        self._path.unlink(missing_ok=True)

    def _append(self, content: bytes) -> None:
        self._file.write(_FRAME.pack(len(content), zlib.crc32(content)) + content)
        self._file.flush()


def _frames(file: BinaryIO) -> Iterator[bytes]:
    while len(start := file.read(_FRAME.size)) == _FRAME.size:
        size, checksum = _FRAME.unpack(start)
        content = file.read(size)
        if len(content) != size or zlib.crc32(content) != checksum:
            return
        yield content


def _packed(entry: Entry) -> bytes:
    examined = entry.examined
    said = {
        "end": asdict(entry.end),
        "skipped": asdict(entry.skipped),
        "languages": examined.languages,
        "shared": [asdict(each) for each in examined.shared],
        "samples": [asdict(each) for each in examined.samples],
    }
    arrays = {name: getattr(examined, name) for name in _ARRAYS}
    for name in ("numbers", "files", "lines"):
        arrays[name] = getattr(entry, name)
    content = io.BytesIO()
    text = np.frombuffer(json.dumps(said).encode(), dtype=np.uint8)
    np.savez(content, said=text, **arrays)
    return content.getvalue()


def _unpacked(content: bytes) -> Entry:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        said = json.loads(arrays["said"].tobytes())
        examined = Examined(
            **{name: arrays[name] for name in _ARRAYS},
            languages=said["languages"],
            shared=[Shared(**each) for each in said["shared"]],
            samples=[Sample(**each) for each in said["samples"]],
        )
        return Entry(
            arrays["numbers"], arrays["files"], arrays["lines"], Place(**said["end"]),
            Skipped(**said["skipped"]), examined,
        )  # fmt: skip

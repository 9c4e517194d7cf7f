"""The data files of a checkpoint: safetensors, written and read piece by piece, with a checksum of
each block.

They are written here and not by the safetensors library, which wants all tensors at once, holds
Python's lock while it writes, and has no checksums. Any reader of safetensors can read them.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from parallel.files.regular import require_regular
from trainer.checkpoint.hf.writer import saying
from trainer.errors import CheckpointError

BLOCK = 1 << 22
"""Bytes that have a checksum of their own: a rank reads whole blocks of what it needs."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor in a data file: its first byte there, its size, and the CRC-32 of each block."""

    file: str
    offset: int
    nbytes: int
    checksums: tuple[int, ...]


def write_data_file(
    path: Path, tensors: Sequence[tuple[str, Tensor]], wrote: Callable[[int], None]
) -> list[Entry]:
    """Write named 1-D tensors, which are on the CPU, to a new file, and wait until it is on the
    disk; where each one is. wrote(n): n more bytes are written. Raises CheckpointError."""
    header, sizes = _header(tensors)
    entries = []
    with saying(path):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(path, flags, 0o666), "wb", buffering=0) as file:
            _write(file.fileno(), memoryview(header))
            at = len(header)
            for (_, tensor), size in zip(tensors, sizes, strict=True):
                checksums = []
                for block in _blocks(tensor):
                    checksums.append(zlib.crc32(block))
                    _write(file.fileno(), block)
                    wrote(len(block))
                entries.append(Entry(path.name, at, size, tuple(checksums)))
                at += size
            os.fsync(file.fileno())
    return entries


def _header(tensors: Sequence[tuple[str, Tensor]]) -> tuple[bytes, list[int]]:
    """The header of a safetensors file, padded to 64 bytes, and the size of each tensor."""
    fields, sizes, at = {}, [], 0
    for name, tensor in tensors:
        sizes.append(tensor.nbytes)
        fields[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text, sizes


def _blocks(tensor: Tensor) -> Iterator[memoryview]:
    content = memoryview(tensor.contiguous().view(torch.uint8).numpy())  # type: ignore[arg-type]
    return (content[start : start + BLOCK] for start in range(0, len(content), BLOCK))


def _write(handle: int, content: memoryview) -> None:
    while content:
        content = content[os.write(handle, content) :]


class DataFile:
    """A data file that is open for reading."""

    def __init__(self, path: Path, handle: int) -> None:
        self._path, self._handle = path, handle

    def read_into(
        self, target: Tensor, entry: Entry, dtype: torch.dtype, start: int, name: str
    ) -> int:
        """Fill `target` with elements [start, start + len(target)) of an entry stored as `dtype`;
        the bytes that were read for it.

        Raises CheckpointError, which says `name`, for a block that is not what was written; target
        has then changed in part.
        """
        item, read = dtype.itemsize, 0
        stop = start + len(target)
        for number in range(start * item // BLOCK, -(-stop * item // BLOCK)):
            block = self._block(entry, number, name)
            read += len(block)
            values = torch.frombuffer(block, dtype=dtype)
            before = number * BLOCK // item  # elements of the entry before this block
            first, last = max(start, before), min(stop, before + len(values))
            piece = values[first - before : last - before]
            target[first - start : last - start].copy_(piece)
        return read

    def _block(self, entry: Entry, number: int, name: str) -> bytearray:
        start = number * BLOCK
        block = bytearray(min(BLOCK, entry.nbytes - start))
        view, at = memoryview(block), entry.offset + start
        while view:
            count = os.preadv(self._handle, [view], at)
            if count == 0:
                raise CheckpointError(f"{self._path}: is cut short in {name}")
            view, at = view[count:], at + count
        if zlib.crc32(block) != entry.checksums[number]:
            raise CheckpointError(
                f"{self._path}: {name} is damaged: the checksum of {len(block):,} bytes at "
                f"{entry.offset + start:,} is wrong"
            )
        return block


@contextmanager
def open_data_file(path: Path, size: int) -> Iterator[DataFile]:
    """A data file of `size` bytes. Raises CheckpointError where it is not there, is of another
    size, or cannot be read."""
    if not os.path.lexists(path):
        raise CheckpointError(f"{path}: is missing")
    found = require_regular(path, CheckpointError)
    if found != size:
        raise CheckpointError(f"{path}: has {found:,} bytes, expected {size:,}")
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            yield DataFile(path, handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error

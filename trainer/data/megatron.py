"""Tokens as Megatron-LM keeps them: NAME.bin, all of them end to end, and NAME.idx, which says
where documents begin (its megatron/core/datasets/indexed_dataset.py).

It says neither which tokenizer made them nor how documents end: give its preprocessing
--append-eod, and the run the same tokenizer.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from parallel.files.regular import require_regular
from trainer.data.shards.stream import Mapped, TokenStream
from trainer.errors import DataError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")  # magic, version, type, sequences, documents
# By the code of the index: numbers that are not negative are read as unsigned.
_TYPES: dict[int, np.dtype[Any]] = {4: np.dtype("<u4"), 8: np.dtype("<u2")}


def is_megatron(path: Path) -> bool:
    """Whether a path, with or without its ending, names both files."""
    return _beside(path, ".idx").is_file() and _beside(path, ".bin").is_file()


def open_megatron(path: Path, validation_fraction: float) -> tuple[TokenStream, TokenStream, int]:
    """What to train on, the last sequences held out, and the same number for the same files. Raises
    DataError."""
    index, tokens = _beside(path, ".idx"), _beside(path, ".bin")
    try:
        header = index.open("rb").read(_HEADER.size)
        magic, version, code, sequences, _ = _HEADER.unpack(header)
    except (OSError, struct.error) as error:
        raise DataError(f"{index}: cannot be read ({error})") from error
    if magic != _MAGIC or version != 1:
        raise DataError(f"{index}: is no index of Megatron-LM, or not of version 1")
    if code not in _TYPES:
        raise DataError(f"{index}: tokens of type {code}, where int32 (4) and uint16 (8) are read")
    kind, size = _TYPES[code], require_regular(tokens, DataError)
    require_regular(index, DataError)
    try:
        start = _HEADER.size + 4 * sequences
        pointers = np.memmap(index, np.dtype("<i8"), "r", start, (sequences,))
    except (OSError, ValueError) as error:
        raise DataError(f"{index}: ends before its {sequences:,} sequences ({error})") from error
    total = size // kind.itemsize
    cut = int(np.searchsorted(pointers, round(size * (1 - validation_fraction))))
    held_out = int(pointers[min(cut, sequences - 1)]) // kind.itemsize if sequences else 0
    if not 0 < held_out < total:
        raise DataError(f"{index}: too few sequences to hold {validation_fraction:g} of them out")
    parts = Mapped(tokens, held_out), Mapped(tokens, total - held_out, held_out * kind.itemsize)
    training, validation = (TokenStream([part], kind) for part in parts)
    return training, validation, zlib.crc32(header + struct.pack("<Q", size))


def _beside(path: Path, ending: str) -> Path:
    stem = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    return stem.with_name(stem.name + ending)

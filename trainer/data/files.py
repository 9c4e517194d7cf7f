"""Bytes and lines of one file, plain or compressed; whatever goes wrong names the file."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from trainer.errors import DataError

CHUNK_BYTES = 1 << 20
COMPRESSED = (".gz", ".zst")
# Frames written with `zstd --long=31` need this window; the library refuses them by default.
LARGEST_ZSTD_WINDOW = 1 << 31


def read_chunks(path: Path) -> Iterator[bytes]:
    """The decompressed content of `path` in chunks; `.gz` and `.zst` say what to decompress.

    Raises DataError if the file cannot be opened or read, or its compressed data are corrupt
    or end too early.
    """
    kind = path.suffix if path.suffix in COMPRESSED else ""
    try:
        if kind == ".gz":
            with gzip.open(path, "rb") as unzipped:
                while chunk := unzipped.read(CHUNK_BYTES):
                    yield chunk
        else:
            with open(path, "rb") as handle:
                yield from _unpack_zstd(handle) if kind == ".zst" else _plain(handle)
    except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path}: the compressed data are corrupt ({_one_line(error)})") from error
    except EOFError as error:
        raise DataError(f"{path}: the compressed data end too early: the file is cut") from error
    except OSError as error:
        reason = error.strerror or _one_line(error)
        raise DataError(f"{path}: cannot be read ({reason})") from error


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of `path`, decompressed, without their line feeds; no line is ever split."""
    begun: list[bytes] = []
    for chunk in read_chunks(path):
        first, *others = chunk.split(b"\n")
        begun.append(first)
        if others:
            yield b"".join(begun)
            yield from others[:-1]
            begun = [others[-1]]
    if last := b"".join(begun):
        yield last


def _plain(handle: BinaryIO) -> Iterator[bytes]:
    while chunk := handle.read(CHUNK_BYTES):
        yield chunk


def _unpack_zstd(handle: BinaryIO) -> Iterator[bytes]:
    """Every frame of the file; EOFError inside one, which the library's own reader passes over."""
    opener = zstandard.ZstdDecompressor(max_window_size=LARGEST_ZSTD_WINDOW)
    frame = opener.decompressobj()
    while chunk := handle.read(CHUNK_BYTES):
        while chunk:
            if frame.eof:
                frame = opener.decompressobj()
            yield frame.decompress(chunk)
            chunk = frame.unused_data
    if not frame.eof:
        raise EOFError


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

"""Bytes and lines of one file, plain or compressed; every error names the file."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from parallel.files.regular import require_regular
from trainer.errors import DataError

CHUNK_BYTES = 1 << 20
COMPRESSED = (".gz", ".zst")
# Frames written with `zstd --long=31` need this window; the library refuses them by default.
LARGEST_ZSTD_WINDOW = 1 << 31
# 4 bytes of a zstd frame can become 128 KiB: so much of it at a time is at most 128 MiB.
ZSTD_CHUNK_BYTES = 1 << 12
# Text gets 3 to 20 times smaller. A file that got smaller than that, and expands beyond this size,
# is made to fill the memory.
MOST_RATIO, RATIO_FROM = 200, 1 << 28
# The longest line of a file with a document on each.
MOST_LINE_BYTES = 1 << 28


def read_chunks(path: Path) -> Iterator[bytes]:
    """The decompressed content of `path` in chunks; `.gz` and `.zst` say what to decompress.

    Raises DataError if it is not a regular file or cannot be opened or read, or if its compressed
    data are corrupt, end too early, or become more than text could.
    """
    kind = path.suffix if path.suffix in COMPRESSED else ""
    size = require_regular(path, DataError)
    try:
        if kind == ".gz":
            with gzip.open(path, "rb") as unzipped:
                yield from _bounded(_pieces(unzipped), size, path)
        elif kind == ".zst":
            with open(path, "rb") as handle:
                yield from _bounded(_unpack_zstd(handle), size, path)
        else:
            with open(path, "rb") as handle:
                yield from _pieces(handle)
    except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path}: the compressed data are corrupt ({_one_line(error)})") from error
    except EOFError as error:
        raise DataError(f"{path}: the compressed data end too early: the file is cut") from error
    except OSError as error:
        reason = error.strerror or _one_line(error)
        raise DataError(f"{path}: cannot be read ({reason})") from error


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of `path`, decompressed, without their line feeds; no line is ever split.

    Raises DataError as `read_chunks` does, and for a line of more than MOST_LINE_BYTES.
    """
    begun: list[bytes] = []
    length, number = 0, 1
    for chunk in read_chunks(path):
        first, *others = chunk.split(b"\n")
        begun.append(first)
        length += len(first)
        if length > MOST_LINE_BYTES:
            raise DataError(
                f"{path}, line {number}: is longer than {MOST_LINE_BYTES:,} bytes: give each "
                "document a line of its own"
            )
        if others:
            yield b"".join(begun)
            yield from others[:-1]
            begun, length, number = [others[-1]], len(others[-1]), number + len(others)
    if last := b"".join(begun):
        yield last


def _pieces(handle: BinaryIO | gzip.GzipFile) -> Iterator[bytes]:
    while chunk := handle.read(CHUNK_BYTES):
        yield chunk


def _unpack_zstd(handle: BinaryIO) -> Iterator[bytes]:
    """Every frame of the file; EOFError inside one, which the library's own reader passes over."""
    opener = zstandard.ZstdDecompressor(max_window_size=LARGEST_ZSTD_WINDOW)
    frame = opener.decompressobj()
    while chunk := handle.read(ZSTD_CHUNK_BYTES):
        while chunk:
            if frame.eof:
                frame = opener.decompressobj()
            yield frame.decompress(chunk)
            chunk = frame.unused_data
    if not frame.eof:
        raise EOFError


def _bounded(chunks: Iterator[bytes], size: int, path: Path) -> Iterator[bytes]:
    """The chunks of a file of `size` compressed bytes; DataError once they cannot be text."""
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > max(RATIO_FROM, MOST_RATIO * size):
            raise DataError(
                f"{path}: its {size:,} bytes decompress to more than {MOST_RATIO} times as many, "
                "which no text does: decompress it by hand if it is one"
            )
        yield chunk


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

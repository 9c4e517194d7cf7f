"""Writing the files of a checkpoint in the Hugging Face layout: shards, the index, JSON."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from trainer.checkpoint.hf.index import INDEX
from trainer.errors import CheckpointError

SHARD_BYTES = 5 * 10**9


def split_into_shards(sizes: Mapping[str, int], limit: int = SHARD_BYTES) -> list[list[str]]:
    """Names in order, in shards of at most `limit` bytes, or of one tensor."""
    shards: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not shards or size > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return shards


def shard_file(number: int, count: int) -> str:
    """The file of shard `number`, from 1 to `count`."""
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def write_shard(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file, and wait until it is on the disk. Raises CheckpointError."""
    with saying(path):
        path.touch()
        mode = stat.S_IMODE(path.stat().st_mode)  # as the umask, or the folder, gives it
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(mode)  # safetensors makes files that only their owner can read
        sync(path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object as transformers formats it. Raises CheckpointError."""
    with saying(path):
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        sync(path)


def write_index(
    folder: Path,
    files: Mapping[str, str],
    total_size: int,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the index: the file of each tensor, and the bytes of all.

    more: further metadata, which other readers ignore.
    """
    metadata = {"total_size": total_size, **(more or {})}
    write_json(folder / INDEX, {"metadata": metadata, "weight_map": dict(files)})


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, and wait until it is on the disk. Raises CheckpointError."""
    with saying(path):
        path.write_bytes(content)
        sync(path)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file unchanged, and wait until it is on the disk. Raises CheckpointError."""
    with saying(target):
        shutil.copyfile(source, target)
        sync(target)


@contextmanager
def saying(path: Path) -> Iterator[None]:
    """Make whatever goes wrong one line that says what was being written."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Writing a checkpoint in the Hugging Face layout, so that a folder with its name is always whole.

`begin` locks a hidden folder beside it, .FOLDER.tandem, and makes `new` in there; the caller fills
that, `commit` gives it its name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from trainer.hf.errors import CheckpointError
from trainer.hf.folder_lock import held, lock, release
from trainer.hf.reader import INDEX

SHARD_BYTES = 5 * 10**9
_SUFFIX = ".tandem"
_NEW, _OLD, _LOCK = "new", "old", "lock"  # in .FOLDER.tandem


def split_into_shards(sizes: Mapping[str, int], limit: int = SHARD_BYTES) -> list[list[str]]:
    """Names in their order, as many to a shard as have `limit` bytes together; at least one."""
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
    """Write a safetensors file, and see it on the disk. Raises CheckpointError."""
    with saying(path):
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors makes files that only their owner can read
        _sync(path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object as transformers formats it. Raises CheckpointError."""
    with saying(path):
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        _sync(path)


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
    """Write a file, and see it on the disk. Raises CheckpointError."""
    with saying(path):
        path.write_bytes(content)
        _sync(path)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file as it is, and see it on the disk. Raises CheckpointError."""
    with saying(target):
        shutil.copyfile(source, target)
        _sync(target)


def scratch(folder: Path) -> Path:
    """The hidden folder beside `folder` in which its next content is written."""
    return folder.with_name(f".{folder.name}{_SUFFIX}")


def begin(folder: Path) -> Path:
    """Make an empty folder, in `scratch(folder)`, that `commit` will call `folder`; return it.

    Nobody else can begin until this process has committed, discarded or ended: `discard` whatever
    goes wrong. What a killed process left is cleared away, the folder that it was replacing put
    back. Raises CheckpointError.
    """
    partial = scratch(folder) / _NEW
    with saying(folder):
        lock(partial.with_name(_LOCK), folder)
        try:
            _settle(partial, folder)
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir()
        except BaseException:
            discard(partial)
            raise
    return partial


def commit(partial: Path, folder: Path) -> None:
    """Give a whole folder its name, in place of an older one. Raises CheckpointError.

    Whatever ends this early leaves one whole folder, the old or the new. If that is between the two
    renames, the old one is in `scratch(folder)`: `discard` puts it back, the next `begin` does
    after a kill. An error behind them says that the new one has its place.
    """
    with saying(folder):
        _sync(partial)
        if os.path.lexists(folder):
            folder.rename(partial.with_name(_OLD))
        partial.rename(folder)
    try:
        _sync(folder.parent)
        _settle(partial, folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: is written and whole, but clearing up behind it failed: {error}: "
            f"remove {partial.parent}"
        ) from error
    discard(partial)


def discard(partial: Path) -> None:
    """End what `begin` began in this process: remove what has not been committed, and put back what
    it was to replace. Does nothing where that has been done.

    Raises CheckpointError if the old folder cannot be put back.
    """
    handle = held(partial.with_name(_LOCK))
    if handle is None:
        return
    folder = partial.parent.with_name(partial.parent.name[1:].removesuffix(_SUFFIX))
    try:
        _settle(partial, folder)
    except OSError as error:
        if not os.path.lexists(folder):
            old = partial.with_name(_OLD)
            raise CheckpointError(
                f"{folder}: is gone, rename {old} to it: {error.strerror or error}"
            ) from error
    else:
        shutil.rmtree(partial, ignore_errors=True)
    finally:
        release(partial.with_name(_LOCK), handle)


def leftover(folder: Path) -> int:
    """Bytes that `begin` will clear away."""
    return sum(path.stat().st_size for path in (scratch(folder) / _NEW).glob("*"))


@contextmanager
def saying(path: Path) -> Iterator[None]:
    """Make whatever goes wrong one line that says what was being written."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error


def _settle(partial: Path, folder: Path) -> None:
    """Remove the old folder if the new one is in its place, else put it back."""
    old = partial.with_name(_OLD)
    if not os.path.lexists(old):
        return
    if not os.path.lexists(folder):
        old.rename(folder)
    elif partial.exists():  # not committed: someone else has made `folder` since
        raise CheckpointError(f"{folder}: is there again, and what it was is {old}: remove one")
    elif old.is_symlink():
        old.unlink()
    else:
        shutil.rmtree(old)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

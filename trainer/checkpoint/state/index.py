"""The JSON files of a checkpoint: what it is of, and where each fragment lies.

Each file has a checksum of its content. Nothing that is read is ever unpickled or run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from torch import Size
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from trainer.checkpoint.hf.writer import write_bytes, write_json
from trainer.checkpoint.state.data_file import BLOCK, DTYPES, NAMES, Entry
from trainer.errors import CheckpointError
from trainer.io.json_object import read_json_object

INDEX, ABOUT = "index.json", "checkpoint.json"
FORMAT = 1
_DATA_FILE = re.compile(r"rank-\d{5,9}\.safetensors")

T = TypeVar("T")


@dataclass(frozen=True)
class About:
    """What a checkpoint is of. progress: fields of Progress. updates: of the optimizer. config: the
    value of every key. text: fingerprint of the text that it was trained on. wandb: id of its run
    there."""

    progress: dict[str, Any]
    updates: int
    config: dict[str, Any]
    text: int
    wandb: str | None = None

    @property
    def step(self) -> int:
        """Steps finished."""
        return int(self.progress["step"])


def data_file(rank: int) -> str:
    """The name of the file of a rank."""
    return f"rank-{rank:05d}.safetensors"


def write_about(folder: Path, about: About) -> None:
    """Raises CheckpointError."""
    write_json(folder / ABOUT, _with_checksum({"format": FORMAT, **vars(about)}))


def read_about(folder: Path) -> About:
    """Raises CheckpointError for a file that is not there, damaged, or of another version."""
    path = folder / ABOUT
    content = _read(path)
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: is of format {content.get('format')}, but this version reads {FORMAT}"
        )

    def about() -> About:
        return About(
            dict(content["progress"]),
            int(content["updates"]),
            dict(content["config"]),
            int(content["text"]),
            content["wandb"],
        )

    return _understood(path, about)


def write_index(folder: Path, metadata: Metadata, entries: Mapping[MetadataIndex, Entry]) -> None:
    """Write where every fragment of `metadata` is. Raises CheckpointError."""
    files = sorted({entry.file for entry in entries.values()})
    tensors = {}
    for key, stored in metadata.state_dict_metadata.items():
        assert isinstance(stored, TensorStorageMetadata)
        chunks = []
        for chunk in sorted(stored.chunks, key=lambda chunk: chunk.offsets[0]):
            entry = entries[MetadataIndex(key, chunk.offsets)]
            place = [files.index(entry.file), entry.offset, entry.nbytes]
            chunks.append([chunk.offsets[0], chunk.sizes[0], *place, list(entry.checksums)])
        dtype = NAMES[stored.properties.dtype]
        tensors[key] = {"size": stored.size[0], "dtype": dtype, "chunks": chunks}
    sizes = [(folder / file).stat().st_size for file in files]
    content = {"block": BLOCK, "files": files, "sizes": sizes, "tensors": tensors}
    compact = json.dumps(_with_checksum(content), separators=(",", ":"))
    write_bytes(folder / INDEX, compact.encode())


@dataclass(frozen=True)
class Index:
    """Where everything is. metadata: as torch.distributed.checkpoint reads it. sizes: bytes of each
    data file."""

    metadata: Metadata
    entries: Mapping[MetadataIndex, Entry]
    sizes: Mapping[str, int]


def read_index(folder: Path) -> Index:
    """Raises CheckpointError where it is not there, damaged, or not what `write_index` writes."""
    path = folder / INDEX
    content = _read(path)
    return _understood(path, lambda: _index(content))


def _index(content: dict[str, Any]) -> Index:
    files = [str(file) for file in content["files"]]
    if content["block"] != BLOCK or not all(map(_DATA_FILE.fullmatch, files)):
        raise ValueError("its blocks or its files are not ours")
    tensors: dict[str, Any] = {}
    entries = {}
    for key, stored in content["tensors"].items():
        dtype = DTYPES[stored["dtype"]]
        chunks = []
        for start, length, file, offset, nbytes, checksums in stored["chunks"]:
            if nbytes != length * dtype.itemsize or len(checksums) != -(-nbytes // BLOCK):
                raise ValueError(f"a chunk of {key} has another size than its elements")
            chunks.append(ChunkStorageMetadata(Size([start]), Size([length])))
            entries[MetadataIndex(key, Size([start]))] = Entry(
                files[file], offset, nbytes, tuple(checksums)
            )
        ends = [(chunk.offsets[0], chunk.offsets[0] + chunk.sizes[0]) for chunk in chunks]
        if any(end > start for (_, end), (start, _) in pairwise(ends)):
            raise ValueError(f"chunks of {key} overlap")
        size = Size([stored["size"]])
        tensors[key] = TensorStorageMetadata(TensorProperties(dtype), size, chunks)
    return Index(Metadata(tensors), entries, dict(zip(files, content["sizes"], strict=True)))


def _with_checksum(content: dict[str, Any]) -> dict[str, Any]:
    return {"sha256": _digest(content), "content": content}


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError(f"{path}: is missing")
    found = read_json_object(path, CheckpointError)
    content = found.get("content")
    if not isinstance(content, dict) or found.get("sha256") != _digest(content):
        raise CheckpointError(f"{path}: is damaged: its checksum is wrong")
    return content


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _understood(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{path}: is not as a checkpoint has it ({error!r})") from error

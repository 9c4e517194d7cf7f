"""The index of a folder of prepared text, and the names of its files. docs/data.md has the format.

A folder has index.json, the tokenizer's own files, and for each shard of a split two flat files:
NAME.tokens, its tokens in little-endian uint16 or uint32, each document with its end after it; and
NAME.ends, for each document the place after its end in the shard, little-endian int64.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from parallel.files.regular import read_regular, require_regular
from trainer.errors import DataError

INDEX_FILE, TOKENIZER_FOLDER = "index.json", "tokenizer"
FORMAT, VERSION = "tandem-tokens", 1
_MOST_INDEX_BYTES = 1 << 28
Name: TypeAlias = Literal["training", "validation"]
SPLITS: tuple[Name, ...] = ("training", "validation")


@dataclass(frozen=True)
class Shard:
    """name: of its files, without their endings. tokens: ends of documents among them. checksum:
    CRC-32 of the file of tokens."""

    name: str
    tokens: int
    documents: int
    checksum: int


@dataclass(frozen=True)
class Index:
    """token_type: "uint16" or "uint32". tokenizer: as `tokenizer_name` gives it. splits: their
    shards in order. about: for people, how the text was made."""

    token_type: str
    vocabulary_size: int
    end_of_document: int
    tokenizer: str
    splits: Mapping[str, Sequence[Shard]]
    about: Mapping[str, Any] = field(default_factory=dict)

    def tokens(self, split: str) -> int:
        return sum(shard.tokens for shard in self.splits[split])

    def documents(self, split: str) -> int:
        return sum(shard.documents for shard in self.splits[split])

    def as_json(self) -> str:
        """The content of index.json."""
        about = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(about, indent=1) + "\n"

    def fingerprint(self) -> int:
        """The same for the same tokens in the same shards."""
        splits = {name: [asdict(shard) for shard in shards] for name, shards in self.splits.items()}
        return zlib.crc32(json.dumps([self.tokenizer, splits], sort_keys=True).encode())


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds prepared text, by its index."""
    path = folder / INDEX_FILE
    if not path.is_file():
        return False
    start = path.open("rb").read(200)
    return f'"format": "{FORMAT}"'.encode() in start


def read_index(folder: Path) -> Index:
    """Raises DataError, with the file, for one that is missing or broken, or whose shards have
    other sizes than it says."""
    path = folder / INDEX_FILE
    content = read_regular(path, _MOST_INDEX_BYTES, DataError)
    try:
        said = json.loads(content)
        if said.pop("format") != FORMAT or (version := said.pop("version")) != VERSION:
            raise DataError(
                f"{path}: is of version {version}, and this program reads {VERSION}: prepare the "
                "text again with launch/prepare.py"
            )
        splits = {
            name: [Shard(**shard) for shard in shards] for name, shards in said["splits"].items()
        }
        index = Index(**{**said, "splits": splits})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: is no index of prepared text ({error})") from error
    if index.token_type not in ("uint16", "uint32") or set(index.splits) != set(SPLITS):
        raise DataError(f"{path}: is no index of prepared text: its token_type or splits are wrong")
    for shards in index.splits.values():
        for shard in shards:
            _require_sizes(folder, shard, np.dtype(index.token_type).itemsize)
    return index


def _require_sizes(folder: Path, shard: Shard, token_bytes: int) -> None:
    sizes = (("tokens", shard.tokens * token_bytes), ("ends", shard.documents * 8))
    for ending, size in sizes:
        path = folder / f"{shard.name}.{ending}"
        there = require_regular(path, DataError)
        if there != size:
            raise DataError(
                f"{path}: has {there:,} bytes where {INDEX_FILE} says {size:,}: copy it again, or "
                "prepare the text again"
            )

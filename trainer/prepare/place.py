"""The folder that is prepared: whose it is, what is in it, and its tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.data.file_tokenizer import TOKENIZER_FILE
from trainer.data.shards.index import INDEX_FILE, SPLITS, TOKENIZER_FOLDER, is_prepared
from trainer.errors import ConfigError, DataError
from trainer.io.folder_lock import FolderLock
from trainer.prepare.progress_file import PROGRESS_FILE
from trainer.prepare.quality.dropped import DROPPED_FILE
from trainer.prepare.quality.findings import FINDINGS_FILE
from trainer.prepare.quality.first_pass import EXAMINED_FILE

_LOCK = ".lock"
_BEGUN = (PROGRESS_FILE, FINDINGS_FILE, EXAMINED_FILE)
"""Files of which each says how far a preparation is."""
_CARRIED = (
    "tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "chat_template.*", "generation_config.json",
)  # fmt: skip


@contextmanager
def claim_place(folder: Path, overwrite: bool) -> Iterator[None]:
    """The folder is there within, and no other preparation's; with what a preparation that was
    interrupted has left. Raises ConfigError for what must not be written over, RunError where
    another process prepares there."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder}: is a file, where a folder is to be made")
    begun = any((folder / name).exists() for name in _BEGUN)
    if is_prepared(folder) and not overwrite:
        raise ConfigError(f"--out {folder}: is prepared already: give --overwrite to do it again")
    strangers = [path for path in _content(folder) if not _is_ours(path)]
    if strangers:
        raise ConfigError(f"--out {folder}: holds {strangers[0].name}: give an empty folder")
    if _content(folder) and not (begun or overwrite or is_prepared(folder)):
        raise ConfigError(f"--out {folder}: holds part of a preparation that cannot go on: give "
                          "--overwrite to start anew")  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder / _LOCK)
    try:
        if overwrite:
            _clear(folder)
        yield
    finally:
        lock.release()


def keep_tokenizer(folder: Path, given: str | None) -> str | None:
    """Copy the files of a tokenizer beside the shards: what was prepared with it can be read with
    it. Their place; None for bytes. Raises DataError."""
    if given is None:
        return None
    source, kept = Path(given).expanduser(), folder / TOKENIZER_FOLDER
    file = source if source.is_file() else source / TOKENIZER_FILE
    if not file.is_file():
        raise DataError(f"--tokenizer {given}: is neither a {TOKENIZER_FILE} nor a folder with one")
    kept.mkdir(exist_ok=True)
    beside = {path for pattern in _CARRIED for path in file.parent.glob(pattern) if path.is_file()}
    for path in beside - {file}:
        shutil.copyfile(path, kept / path.name)
    if not any(name in {path.name for path in beside} for name in ("tokenizer_config.json",)):
        _keep_end(file, kept)
    shutil.copyfile(file, kept / TOKENIZER_FILE)
    return str(kept)


def _keep_end(file: Path, kept: Path) -> None:
    """config.json may be what says which token ends a document."""
    config = file.parent / "config.json"
    if config.is_file():
        shutil.copyfile(config, kept / config.name)


def _content(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_ours(path: Path) -> bool:
    if path.name in (INDEX_FILE, *_BEGUN, DROPPED_FILE, TOKENIZER_FOLDER, _LOCK):
        return True
    return path.suffix in (".tokens", ".ends") and path.name.startswith(SPLITS)


def _clear(folder: Path) -> None:
    for path in _content(folder):
        if path.name == TOKENIZER_FOLDER:
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()

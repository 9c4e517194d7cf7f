"""The files beside the weights of a checkpoint: its tokenizer, and how text is generated."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from trainer.checkpoint.hf.architecture import read_hf_config
from trainer.config.schema import Config
from trainer.config.sources import named_sources
from trainer.data.file_tokenizer import TOKENIZER_FILE, load_tokenizer
from trainer.data.shards.index import TOKENIZER_FOLDER, is_prepared
from trainer.data.tokens import ByteTokenizer, byte_characters
from trainer.errors import CheckpointError, DataError

END_OF_DOCUMENT = "<|endoftext|>"
GENERATION_FILE = "generation_config.json"

_CARRIED = (
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "chat_template.*",
    GENERATION_FILE,
)


@dataclass(frozen=True)
class Companions:
    """What a run's export takes along, read before the run, since it may outlive its sources.

    base: config.json of the checkpoint that the run started from, or its special tokens alone.
    files: contents by name.
    """

    base: dict[str, Any]
    files: dict[str, bytes]


def tokenizer_files(folder: Path, given: Path | None = None) -> list[Path]:
    """The files of a checkpoint's tokenizer, and its generation_config.json, by name.

    They are carried over unchanged when the weights are converted or trained on. Code (`.py`) is
    not among them. given, errors: as in `carried_files`.
    """
    return carried_files(folder, _CARRIED, given)


def carried_files(folder: Path, patterns: tuple[str, ...], given: Path | None = None) -> list[Path]:
    """The files of a checkpoint that match one of these patterns, by name; none without a folder.

    A link counts as the file that it leads to, if that lies in `folder` or, where `folder` is a
    snapshot in the cache of Hugging Face, in the blobs of its repository. given: a file that the
    user has named, which may be a link to anywhere. Raises CheckpointError for a link that leads
    elsewhere: an export gives away what it takes along.
    """
    roots = _roots(folder)
    names = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [file for file in names if any(fnmatchcase(file.name, p) for p in patterns)]
    for link in (file for file in found if file.is_symlink() and file != given):
        target = Path(os.path.realpath(link))  # not a file where links form a cycle
        if not any(target.is_relative_to(root) for root in roots) or not target.is_file():
            raise CheckpointError(
                f"{link}: is a link to {target}, which is not a file of this checkpoint: put "
                "the file itself there, or remove the link"
            )
    return [file for file in found if file.is_file()]


def _roots(folder: Path) -> list[Path]:
    """Where the files of a checkpoint may lie: in its folder, and, for a snapshot in Hugging Face's
    cache, models--OWNER--NAME/snapshots/COMMIT, in models--OWNER--NAME/blobs."""
    folder = folder.resolve()
    repository = folder.parent.parent
    snapshot = folder.parent.name == "snapshots" and repository.name.startswith("models--")
    return [folder, repository / "blobs"] if snapshot else [folder]


def tokenizer_of_run(config: Config) -> str | None:
    """The tokenizer.json, or the folder with it, that a run reads text with; None is bytes.

    data.tokenizer if it is given, else that of the checkpoint that the run starts from, else that
    of its prepared text.
    """
    if config.data.tokenizer is not None:
        return config.data.tokenizer
    if config.model.init_from is None:
        return _prepared_with(config)
    file = Path(config.model.init_from).expanduser() / TOKENIZER_FILE
    if not file.is_file() or file.read_bytes() == byte_tokenizer_files()[TOKENIZER_FILE]:
        return None
    return str(file.parent)


def _prepared_with(config: Config) -> str | None:
    """The tokenizer beside prepared text; of a mixture, beside the first that has one."""
    mixture, paths = config.data.mixture, [config.data.path]
    if mixture is not None:
        paths = [source.path for source in named_sources(mixture)]
    for path in paths:
        folder = Path(path or ".").expanduser()
        if path is not None and is_prepared(folder):
            file = folder / TOKENIZER_FOLDER / TOKENIZER_FILE
            return str(file.parent) if file.is_file() else None
    return None


def read_companions(config: Config) -> Companions:
    """The run's tokenizer, and what else the checkpoint that it started from says.

    Raises ConfigError, CheckpointError and DataError, in one line, for what cannot be read.
    """
    source, given = (
        None if path is None else Path(path).expanduser()
        for path in (config.model.init_from, _given_tokenizer(config))
    )
    base = {} if source is None else read_hf_config(source)
    try:
        if source is not None and (given is None or given.resolve() in _places(source)):
            files = {file.name: file.read_bytes() for file in tokenizer_files(source, given)}
            if not {TOKENIZER_FILE, "tokenizer.model"} & files.keys():
                files = byte_tokenizer_files() | files
            return Companions(base, files)
        files = byte_tokenizer_files() if given is None else _files_of(given)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error
    special = {
        "bos_token_id": None,
        "pad_token_id": None,
        "eos_token_id": load_tokenizer(_given_tokenizer(config)).end_of_document,
    }
    files[GENERATION_FILE] = _json(special)
    return Companions(base | special, files)


def _given_tokenizer(config: Config) -> str | None:
    """That of the run, but for the one of the checkpoint that it starts from."""
    if config.data.tokenizer is not None or config.model.init_from is not None:
        return config.data.tokenizer
    return _prepared_with(config)


def _places(folder: Path) -> tuple[Path, Path]:
    return folder.resolve(), (folder / TOKENIZER_FILE).resolve()


def _files_of(tokenizer: Path) -> dict[str, bytes]:
    """The files of a tokenizer given by its folder, or by its file, whatever that is called."""
    folder = tokenizer if tokenizer.is_dir() else tokenizer.parent
    files = {file.name: file.read_bytes() for file in tokenizer_files(folder, tokenizer)}
    if not tokenizer.is_dir():
        files[TOKENIZER_FILE] = tokenizer.read_bytes()
    return files


def byte_tokenizer_files() -> dict[str, bytes]:
    """ByteTokenizer as tokenizer.json and tokenizer_config.json, for others to load.

    The tokens are the same, number by number: bytes are themselves (a byte-level vocabulary
    without merges), END_OF_DOCUMENT is 256 and the `eos_token`.
    """
    ours = ByteTokenizer()
    alphabet = {character: byte for byte, character in enumerate(byte_characters())}
    theirs = tokenizers.Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    # No regular expression: without merges, how text is cut into words changes nothing.
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.decoder = decoders.ByteLevel()
    theirs.add_special_tokens([tokenizers.AddedToken(END_OF_DOCUMENT, normalized=False)])
    assert theirs.token_to_id(END_OF_DOCUMENT) == ours.end_of_document
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_DOCUMENT,
        "pad_token": END_OF_DOCUMENT,  # batches need one; the attention mask hides it
        "clean_up_tokenization_spaces": False,
    }
    return {
        TOKENIZER_FILE: theirs.to_str(pretty=True).encode(),
        "tokenizer_config.json": _json(config),
    }


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()

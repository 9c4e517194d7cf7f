"""A checkpoint to generate text with: weights, tokenizer, where texts start and end."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from parallel.files.shown import shown
from parallel.ops.precision import Precision, accurate_type
from trainer.checkpoint.hf.companions import GENERATION_FILE
from trainer.checkpoint.hf.conversion import checked_model
from trainer.checkpoint.hf.load import load_part
from trainer.checkpoint.hf.reader import Checkpoint
from trainer.config.schema import ModelConfig
from trainer.data.file_tokenizer import TOKENIZER_FILE, load_tokenizer
from trainer.data.tokens import ByteTokenizer, Tokenizer
from trainer.errors import CheckpointError, ConfigError
from trainer.generate.cached_model import CachedModel, cached_part, start_texts
from trainer.io.json_object import read_json_object
from trainer.model.part import ModelPart

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TextModel:
    """part: of `model`, loaded. first: the token that every text starts with, if any. lone: what
    stands in for an empty prompt. ends: tokens that end a text. longest: tokens of the longest
    text, max_position_embeddings; None where config.json does not say.
    """

    part: ModelPart
    model: ModelConfig
    tokenizer: Tokenizer
    first: int | None
    lone: int
    ends: frozenset[int]
    longest: int | None

    def prompt_tokens(self, prompt: str | bytes) -> list[int]:
        """The tokens of a prompt; at least one. Raises ConfigError for what is not UTF-8."""
        try:
            tokens = self.tokenizer.encode(prompt).tolist()
        except ValueError as error:
            raise ConfigError(f"the prompt is not UTF-8: {error}") from error
        start = [] if self.first is None else [self.first]
        return start + tokens or [self.lone]

    def room(self, prompt: int, wanted: int | None, usual: int) -> int:
        """How many new tokens to make after a prompt of `prompt` tokens: as many as wanted, else
        the usual number, or fewer if there is less room. Raises ConfigError where they do not
        fit."""
        if self.longest is None:
            return usual if wanted is None else wanted
        left = self.longest - prompt
        if left < 1 or (wanted is not None and wanted > left):
            new = "any new one" if wanted is None else f"--max-new-tokens {wanted}"
            advice = f"ask for at most {left}" if left > 0 else "shorten the prompt"
            raise ConfigError(
                f"{prompt} tokens of prompt and {new} do not fit into max_position_embeddings = "
                f"{self.longest} of config.json, which a run sets to its data.sequence_length: "
                f"{advice}"
            )
        return min(usual, left) if wanted is None else wanted

    def cache_bytes(self, positions: int) -> int:
        """What the caches of a text of so many tokens take."""
        c, layers = self.model.attention, self.model.layers + self.model.mtp.depth
        numbers = layers * (c.kv_lora_rank + c.rope_head_dim) + 2 * c.rope_head_dim
        return positions * numbers * self.part.options.ops.precision.accurate.itemsize

    def require_memory(self, positions: int) -> None:
        """Raise ConfigError where the caches of such a text are larger than all memory."""
        needed, memory = self.cache_bytes(positions), machine_memory()
        if needed > memory:
            raise ConfigError(
                f"prompt and new text of {positions:,} tokens need {needed / 1e9:,.1f} GB, "
                f"this machine has {memory / 1e9:,.1f} GB of memory: ask for fewer by "
                "--max-new-tokens"
            )

    def start_texts(self, positions: int, slots: int = 1) -> CachedModel:
        """Room for `slots` texts of up to `positions` tokens; those before end."""
        vocabulary = self.tokenizer.vocabulary_size
        return start_texts(self.part, self.model, positions, slots, vocabulary)


def machine_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def load_text_model(
    folder: Path, tokenizer: str | None, dtype: torch.dtype, with_mtp: bool, progress: Progress
) -> TextModel:
    """Read a checkpoint in the Hugging Face layout, such as RUN/weights.

    tokenizer: a tokenizer.json, or a folder with one; None looks in `folder`, and takes bytes for a
    vocabulary of 257. with_mtp: load the MTP modules; CheckpointError where there is none.
    progress(done, total): bytes read. Raises CheckpointError, ConfigError and DataError.
    """
    checkpoint = Checkpoint(folder)
    model = checked_model(checkpoint)
    if with_mtp and not model.mtp.depth:
        raise CheckpointError(
            f"{folder} has no MTP module (model.layers.{model.layers}.eh_proj.weight) to make "
            "drafts with: leave out --speculative and --compare"
        )
    chosen = tokenizer_of(folder, tokenizer, model)
    if not with_mtp:
        model = replace(model, mtp=replace(model.mtp, depth=0))
    first, lone, ends = _special_tokens(checkpoint, chosen, model)
    part = cached_part(model, Precision(dtype, accurate_type(dtype)))
    load_part(part, model, checkpoint, True, progress)
    longest = checkpoint.config.get("max_position_embeddings")
    return TextModel(part, model, chosen, first, lone, ends, longest)


def tokenizer_of(folder: Path, path: str | None, model: ModelConfig) -> Tokenizer:
    """That of a checkpoint, or of `path`. Raises ConfigError and DataError."""
    if path is None and os.path.lexists(folder / TOKENIZER_FILE):
        path = str(folder)
    if path is None and model.vocab_size != ByteTokenizer().vocabulary_size:
        raise ConfigError(
            f"{folder} has no {TOKENIZER_FILE}, and its vocabulary of {model.vocab_size} is not "
            "that of bytes, 257: give --tokenizer"
        )
    tokenizer = load_tokenizer(path)
    if tokenizer.vocabulary_size > model.vocab_size:
        raise ConfigError(
            f"tokenizer {path} has {tokenizer.vocabulary_size} tokens, the model of {folder} only "
            f"{model.vocab_size}: give the --tokenizer that it was trained with"
        )
    return tokenizer


def _special_tokens(
    checkpoint: Checkpoint, tokenizer: Tokenizer, model: ModelConfig
) -> tuple[int | None, int, frozenset[int]]:
    """`first`, `lone` and `ends` of the TextModel."""
    special = checkpoint.config | _read(checkpoint.folder / GENERATION_FILE)
    start, end = special.get("bos_token_id"), special.get("eos_token_id")
    if start is not None and not (type(start) is int and 0 <= start < model.vocab_size):
        raise CheckpointError(
            f"{checkpoint.folder}: bos_token_id is {shown(start)}, must be a token of the model, "
            f"0 to {model.vocab_size - 1}"
        )
    asked = _read(checkpoint.folder / "tokenizer_config.json").get("add_bos_token")
    if asked and start is None:
        raise CheckpointError(
            f"{checkpoint.folder}: tokenizer_config.json has add_bos_token, but neither "
            "generation_config.json nor config.json has a bos_token_id"
        )
    ends = end if isinstance(end, list) else [] if end is None else [end]
    if not all(type(token) is int for token in ends):
        raise CheckpointError(f"{checkpoint.folder}: eos_token_id is {shown(end)}, must be numbers")
    lone = tokenizer.end_of_document if start is None else start
    return start if asked else None, lone, frozenset([tokenizer.end_of_document, *ends])


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no file."""
    return read_json_object(path, CheckpointError) if os.path.lexists(path) else {}

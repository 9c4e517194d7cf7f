"""A byte-level BPE vocabulary, learnt from the documents that are prepared, by `tokenizers`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from parallel.files.outputs import write_file
from trainer.data.file_tokenizer import TOKENIZER_FILE
from trainer.data.tokens import byte_characters
from trainer.errors import DataError
from trainer.prepare.source import Place, Skipped, Source

END = "<|endoftext|>"
SPECIAL = (
    END, "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>",
    "<|system|>", "<|user|>", "<|assistant|>", "<think>", "</think>",
)  # fmt: skip
"""The end of a document, the marks of fill in the middle, and some for what comes after."""
LEAST = 256 + len(SPECIAL)
# Words as GPT-4's pattern cuts them, but for digits, which stand alone: runs of letters with at
# most one mark before them, digits, runs of marks with the line breaks after them, blanks.
WORDS = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # fmt: skip


def train_tokenizer(texts: Iterator[list[str]], size: int, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json. texts: what it learns from, as `first_texts`
    gives it. size: of the vocabulary. Raises DataError and WriteError."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=list(byte_characters()),
    )  # fmt: skip
    library.train_from_iterator(texts, trainer)
    if library.get_vocab_size() < size:
        raise DataError(
            f"--train-tokenizer {size}: the text gives only {library.get_vocab_size()} tokens: ask "
            "for fewer, or give more text"
        )
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END}
    write_file(folder / TOKENIZER_FILE, library.to_str(pretty=True))
    write_file(folder / "tokenizer_config.json", json.dumps(about, indent=2) + "\n")


def first_texts(
    source: Source, most_bytes: int, skipped: Skipped | None, left_out: AbstractSet[int]
) -> Iterator[list[str]]:
    """The source's first documents, without some, up to about so many bytes. Raises DataError."""
    total = 0
    for chunk in source.chunks(Place(), skipped, left_out):
        yield [document.decode() for document in chunk.documents]
        total += sum(map(len, chunk.documents))
        if total >= most_bytes:
            return

"""The text of a run: what it trains on, and what is held out."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.checkpoint.hf.companions import tokenizer_of_run
from trainer.config.schema import Config
from trainer.data.batches import Batches, validation_windows
from trainer.data.bigram import byte_bigram_entropy
from trainer.data.bits_per_byte import bytes_per_token
from trainer.data.corpus import Split, load_corpus, split_corpus
from trainer.data.file_tokenizer import load_tokenizer
from trainer.data.tokens import Tokenizer
from trainer.errors import DataError


@dataclass(frozen=True)
class Text:
    """windows: held out, [N, S + 1 + MTP depth]."""

    training: Split
    validation: Split
    batches: Batches
    windows: Tensor
    tokenizer: Tokenizer

    def describe(self) -> str:
        """Sizes, for a person."""
        return (
            f"{self.training.size:,} {self.tokenizer.unit} to train on in "
            f"{self.training.documents.size:,} documents, {self.validation.size:,} held out in "
            f"{self.validation.documents.size:,}"
        )

    def fingerprint(self) -> int:
        """The same for the same corpus."""
        return zlib.crc32(self.training.corpus.tokens.tobytes())

    def bigram_entropy(self) -> float | None:
        """Nats per byte of a bigram model of the training text, on the held-out windows.

        None where tokens are not bytes.
        """
        windows, length = self.windows.numpy(), self.batches.sequence_length
        return byte_bigram_entropy(self.training, windows, length, self.tokenizer)

    def bytes_per_token(self) -> float:
        """UTF-8 bytes per target token of the held-out windows."""
        windows, length = self.windows.numpy(), self.batches.sequence_length
        return bytes_per_token(self.tokenizer, windows, length)


def load_text(config: Config) -> Text:
    """Read and split the corpus of `config`. Raises DataError, in one line, where that fails."""
    data, lookahead = config.data, config.model.mtp.depth
    path = tokenizer_of_run(config)
    tokenizer = load_tokenizer(path)
    if tokenizer.vocabulary_size > config.model.vocab_size:  # before the text, which may be long
        raise DataError(
            f"model.vocab_size = {config.model.vocab_size} is less than the "
            f"{tokenizer.vocabulary_size} tokens of the tokenizer, {path or 'bytes'}: set "
            f"model.vocab_size to {tokenizer.vocabulary_size} or more, or data.tokenizer"
        )
    corpus = load_corpus(data.path, data.text_field, tokenizer)
    training, validation = split_corpus(corpus, data.validation_fraction, config.run.seed)
    windows = validation_windows(
        validation,
        seed=config.run.seed,
        sequence_length=data.sequence_length,
        lookahead=lookahead,
        sequences=config.metrics.eval_sequences,
    )
    batches = Batches(
        training,
        seed=config.run.seed,
        sequence_length=data.sequence_length,
        lookahead=lookahead,
    )
    return Text(training, validation, batches, torch.from_numpy(windows.astype("int64")), tokenizer)

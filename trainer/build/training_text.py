"""The text of a run: what it trains on, and what is held out."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from trainer.checkpoint.hf.companions import tokenizer_of_run
from trainer.config.schema import Config
from trainer.data.bigram import byte_bigram_entropy
from trainer.data.bits_per_byte import bytes_per_token
from trainer.data.document_numbers import document_numbers
from trainer.data.file_tokenizer import load_tokenizer
from trainer.data.mixture import MixedSequences
from trainer.data.mixture_config import Mixture, read_mixture
from trainer.data.sequences import Sequences
from trainer.data.text_source import Reading, TextSource, open_source
from trainer.data.tokens import Tokenizer
from trainer.errors import DataError
from trainer.objective.pretraining import DOCUMENTS, TOKENS


@dataclass(frozen=True)
class Text:
    """sequences: to train on. sources: of the text, each with what is held out of it. apart:
    whether documents are to be kept apart."""

    sequences: Sequences
    sources: tuple[TextSource, ...]
    tokenizer: Tokenizer
    apart: bool

    def describe(self) -> str:
        """Sizes, for a person."""
        return "; ".join(f"{s.name}: {s.sizes}" if s.name else s.sizes for s in self.sources)

    def fingerprint(self) -> int:
        """The same for the same text."""
        first, *others = (source.fingerprint for source in self.sources)
        return zlib.crc32(repr([first, *others]).encode()) if others else first

    def bigram_entropy(self) -> float | None:
        """Nats per byte of a bigram model of the training text, on the held-out windows.

        None where tokens are not bytes, or the text is not in memory.
        """
        source = self.sources[0]
        if len(self.sources) > 1 or source.split is None:
            return None
        windows, length = source.held_out.numpy(), self.sequences.sequence_length
        return byte_bigram_entropy(source.split, windows, length, self.tokenizer)

    @cached_property
    def bytes_per_token(self) -> Mapping[str, float]:
        """By source, UTF-8 bytes per target token of the held-out windows."""
        length = self.sequences.sequence_length
        return {
            source.name: bytes_per_token(self.tokenizer, source.held_out.numpy(), length)
            for source in self.sources
        }

    def fields(self, tokens: Tensor) -> dict[str, Tensor]:
        """What a step is given of windows [n, S + 1 + lookahead]."""
        if not self.apart:
            return {TOKENS: tokens}
        numbers = document_numbers(tokens, self.tokenizer.end_of_document)
        return {TOKENS: tokens, DOCUMENTS: numbers}

    def mean(self, values: Mapping[str, float]) -> float:
        """Of values by source, over the held-out windows of all."""
        sizes = {source.name: len(source.held_out) for source in self.sources}
        return sum(values[name] * size for name, size in sizes.items()) / sum(sizes.values())


def load_text(config: Config) -> Text:
    """Open or read the text of `config`. Raises DataError or ConfigError, in one line."""
    data, path = config.data, tokenizer_of_run(config)
    tokenizer = load_tokenizer(path)
    if tokenizer.vocabulary_size > config.model.vocab_size:  # before the text, which may be long
        raise DataError(
            f"model.vocab_size = {config.model.vocab_size} is less than the "
            f"{tokenizer.vocabulary_size} tokens of the tokenizer, {path or 'bytes'}: set "
            f"model.vocab_size to {tokenizer.vocabulary_size} or more, or data.tokenizer"
        )
    how = Reading(
        seed=config.run.seed,
        sequence_length=data.sequence_length,
        lookahead=config.model.mtp.depth,
        held_out=config.metrics.eval_sequences,
        text_field=data.text_field,
        validation_fraction=data.validation_fraction,
    )
    if data.mixture is None:
        source = open_source("", data.path, how, tokenizer)
        return Text(source.training, (source,), tokenizer, data.mask_documents)
    mixture: Mixture = read_mixture(data.mixture, data.sequence_length)
    sources = tuple(open_source(name, path, how, tokenizer) for name, path in mixture.paths.items())
    training = [source.training for source in sources]
    mixed = MixedSequences(list(mixture.paths), training, mixture.interleaving)
    return Text(mixed, sources, tokenizer, data.mask_documents)

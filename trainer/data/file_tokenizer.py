"""A tokenizer from its `tokenizer.json`, the file of the Hugging Face library `tokenizers`."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers.decoders import ByteLevel

from parallel.files.regular import require_regular
from parallel.files.shown import shown
from trainer.data.tokens import (
    ByteTokenizer,
    Tokenizer,
    Tokens,
    byte_characters,
    token_type,
)
from trainer.errors import DataError
from trainer.io.json_object import read_json_object

TOKENIZER_FILE = "tokenizer.json"
# The library takes hundreds of bytes per token while it encodes, and more time per token for longer
# texts: a long document goes to it in pieces, and a batch, spread over the cores, is bounded too.
PIECE_CHARACTERS = 1 << 19
BATCH_CHARACTERS = 1 << 22
# The largest vocabularies that are known take about 40 MB.
_MOST_FILE_BYTES = 1 << 29
# Before a lone blank between letters, or after a lone line feed: of the patterns by which GPT-2,
# Llama 3, Qwen and DeepSeek-V3 cut text into words, none makes a word that reaches across.
_SEAM = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])|(?<=\S\n)(?=\w)")


@dataclass(frozen=True)
class FileTokenizer:
    """A `tokenizers.Tokenizer` as a Tokenizer; load_tokenizer makes it.

    Special tokens are never found in text (tokens that the file adds as ordinary ones are). Only
    a Unigram or word vocabulary that lists a special token as a piece of text may still yield it.
    vocabulary_size: the largest token + 1; a model may have more.
    """

    library: tokenizers.Tokenizer = field(repr=False)
    vocabulary_size: int
    end_of_document: int
    unit: str = "tokens"

    def encode(self, text: str | bytes) -> Tokens:
        """The tokens [n] of `text`; none is added, not even a first one that the file asks for."""
        content = _text(text)
        with _one_line_errors("the tokenizer cannot encode the text"):
            return self._tokens(self.library.encode(content, add_special_tokens=False))

    def encode_documents(self, documents: Iterable[bytes]) -> Iterator[Tokens]:
        """The tokens [n] of each document in turn, many at a time, on all cores.

        As `encode`, but a document of more than PIECE_CHARACTERS is encoded in pieces. They are cut
        where byte-level vocabularies always end a word, so the tokens stay the same; in text
        without such a place, or with a vocabulary that starts a text with a blank, a token beside
        the cut may differ.
        """
        pieces = (piece for document in documents for piece in _pieces(_text(document)))
        begun: list[Tokens] = []
        for batch in _batches(pieces):
            texts = [text for text, _ in batch]
            with _one_line_errors("the tokenizer cannot encode the text"):
                encodings = self.library.encode_batch_fast(texts, add_special_tokens=False)
            for (_, last), encoding in zip(batch, encodings):
                begun.append(self._tokens(encoding))
                if last:
                    yield np.concatenate(begun)
                    begun = []

    def decode(self, tokens: NDArray[np.integer]) -> bytes:
        """The UTF-8 of `tokens` [n], ends of documents left out, other special tokens as text.

        Exact for byte-level vocabularies: the bytes of [a, b] are those of [a], then those of [b].
        Others decode by the rules of their file, U+FFFD for a part of a character. A number
        below vocabulary_size that no token has gives nothing; ValueError for what lies outside.
        """
        kept = tokens[tokens != self.end_of_document]
        if kept.size and not 0 <= kept.min() <= kept.max() < self.vocabulary_size:
            raise ValueError(
                f"tokens {kept.min()}..{kept.max()} in a vocabulary of {self.vocabulary_size}"
            )
        if isinstance(self.library.decoder, ByteLevel):
            return b"".join(map(self._contents.__getitem__, kept.tolist()))
        return self.library.decode(kept.tolist(), skip_special_tokens=False).encode()

    @functools.cached_property
    def _contents(self) -> list[bytes]:
        """The bytes of each token of a byte-level vocabulary."""
        byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        added = self.library.get_added_tokens_decoder()
        contents = [b""] * self.vocabulary_size
        for token, number in self.library.get_vocab().items():
            # What was added to the vocabulary is plain text, even if it looks like bytes.
            if number in added or not byte_of.keys() >= set(token):
                contents[number] = token.encode()
            else:
                contents[number] = bytes(byte_of[character] for character in token)
        return contents

    def _tokens(self, encoding: tokenizers.Encoding) -> Tokens:
        return np.array(encoding.ids, dtype=token_type(self.vocabulary_size))


def load_tokenizer(path: str | None) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`, or of a folder with one; None is the byte tokenizer.

    The end of a document is `eos_token` of `tokenizer_config.json` beside it, else `eos_token_id`
    of `generation_config.json` or `config.json`. Truncation and padding that the file asks for are
    switched off. Raises DataError, in one line, for a file that is missing or broken, and where
    nothing says what ends a document.
    """
    if path is None:
        return ByteTokenizer()
    file = _tokenizer_file(Path(os.path.expanduser(path)))
    with _one_line_errors(f"{file}: not a tokenizer"):
        library = tokenizers.Tokenizer.from_file(str(file))
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True  # as text, when text has them
    end = _end_of_document(library, file)
    added = library.get_added_tokens_decoder().get(end)
    if added is not None and not added.special:  # it would be found in text
        library.add_special_tokens([added.content])
    return FileTokenizer(library, max(library.get_vocab().values()) + 1, end)


@contextmanager
def _one_line_errors(what: str) -> Iterator[None]:
    """Make whatever the library raises a DataError: it has no type for that, and where it panics,
    what it raises is not even an Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise DataError(f"{what} ({' '.join(str(error).split())[:300]})") from error


def _tokenizer_file(path: Path) -> Path:
    is_folder = os.path.isdir(path)
    file = path / TOKENIZER_FILE if is_folder else path
    if os.path.lexists(file):
        if require_regular(file, DataError) > _MOST_FILE_BYTES:
            raise DataError(f"{file}: is larger than {_MOST_FILE_BYTES:,} bytes: no tokenizer is")
        return file
    if os.path.exists(path / "tokenizer.model"):
        raise DataError(
            f"tokenizer {path} has tokenizer.model, but no {TOKENIZER_FILE}: make one with "
            "`AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)` of transformers"
        )
    what = f"has no {TOKENIZER_FILE}" if is_folder else "does not exist"
    raise DataError(
        f"tokenizer {path} {what}; set data.tokenizer to a {TOKENIZER_FILE} or a folder with one "
        "(null is bytes)"
    )


def _end_of_document(library: tokenizers.Tokenizer, file: Path) -> int:
    beside = file.parent / "tokenizer_config.json"
    token = _json_object(beside).get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    if text is not None:
        with _one_line_errors(f"{beside}: eos_token {shown(text)}"):
            number = library.token_to_id(text) if isinstance(text, str) else None
        if number is None:
            raise DataError(f"{beside}: eos_token {shown(text)} is not a token of {file}")
        return number
    for name in ("generation_config.json", "config.json"):
        value = _json_object(file.parent / name).get("eos_token_id")
        first = value[0] if isinstance(value, list) and value else value
        if first is not None:
            if (
                type(first) is not int
                or not 0 <= first < 1 << 32
                or library.id_to_token(first) is None
            ):
                raise DataError(
                    f"{file.parent / name}: eos_token_id {shown(value)} is not a token of {file}"
                )
            return first
    raise DataError(
        f'{file}: nothing says which token ends a document; write it to {beside}, as {{"eos_token":'
        ' "</s>"}'
    )


def _json_object(file: Path) -> dict[str, object]:
    """The object in `file`; an empty one if there is no file."""
    return read_json_object(file, DataError) if os.path.lexists(file) else {}


def _text(text: str | bytes) -> str:
    # Through bytes, since half of a surrogate pair would be a misleading TypeError further on.
    return (text.encode() if isinstance(text, str) else text).decode()


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """`text` in pieces of PIECE_CHARACTERS to twice that, cut at a seam, each with whether it is
    the last."""
    start, last = 0, False
    while not last:
        least, most = start + PIECE_CHARACTERS, start + 2 * PIECE_CHARACTERS
        seam = _SEAM.search(text, least, most)
        end = seam.start() if seam else most
        last = end >= len(text)
        yield text[start:end], last
        start = end


def _batches(pieces: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    batch: list[tuple[str, bool]] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece[0])
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch

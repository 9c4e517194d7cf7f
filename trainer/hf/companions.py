"""The files beside the weights of a checkpoint: its tokenizer, and how text is generated."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from trainer.data.tokens import ByteTokenizer, byte_characters

END_OF_DOCUMENT = "<|endoftext|>"

_CARRIED = (
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "chat_template.*",
    "generation_config.json",
)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's tokenizer, and its generation_config.json, by name.

    What a checkpoint in other weights, or of other weights, takes along as it is. Code (`.py`) is
    not among them. No such file, or no such folder, is an empty list.
    """
    found = {file for pattern in _CARRIED for file in folder.glob(pattern) if file.is_file()}
    return sorted(found)


def write_byte_tokenizer(folder: Path) -> None:
    """Write ByteTokenizer as tokenizer.json and tokenizer_config.json, for others to load.

    The tokens are the same, number by number: bytes are themselves (a byte-level vocabulary
    without merges), END_OF_DOCUMENT is 256 and the `eos_token`. Replaces files of these names.
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
    (folder / "tokenizer.json").write_text(theirs.to_str(pretty=True), encoding="utf-8")
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")

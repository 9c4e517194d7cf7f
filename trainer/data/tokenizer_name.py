"""A name for a tokenizer that is the same where the same tokens mean the same text."""

from __future__ import annotations

import hashlib
import json

from trainer.data.file_tokenizer import FileTokenizer
from trainer.data.tokens import Tokenizer

BYTES = "bytes"


def tokenizer_name(tokenizer: Tokenizer) -> str:
    """`bytes` for the built-in one, else a hash of the vocabulary and the end of document."""
    if not isinstance(tokenizer, FileTokenizer):
        return BYTES
    vocabulary = sorted(tokenizer.library.get_vocab().items(), key=lambda item: item[1])
    content = json.dumps([vocabulary, tokenizer.end_of_document])
    return hashlib.sha256(content.encode()).hexdigest()[:16]

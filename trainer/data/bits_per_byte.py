"""Bits per byte of held-out text: a loss to compare runs with different tokenizers by."""

from __future__ import annotations

import math

from trainer.data.tokens import Tokenizer, Tokens


def bytes_per_token(tokenizer: Tokenizer, windows: Tokens, sequence_length: int) -> float:
    """UTF-8 bytes of the targets windows[:, 1 : S + 1], divided by how many targets there are.

    windows [n, at least S + 1] as from validation_windows: the targets of the model's own loss. The
    end of a document is a target without bytes. Exact for bytes and byte-level vocabularies; others
    count U+FFFD where a window starts or ends inside a character.
    """
    total = 0
    for window in windows[:, : sequence_length + 1]:
        # With the token before them, since some vocabularies drop the blank that starts a text.
        total += len(tokenizer.decode(window)) - len(tokenizer.decode(window[:1]))
    return total / (len(windows) * sequence_length)


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float | None:
    """A mean cross-entropy in bits per byte of text; None where the targets have no bytes."""
    if not bytes_per_token:
        return None
    return nats_per_token / math.log(2) / bytes_per_token

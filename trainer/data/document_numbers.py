"""Which document each token of a window is of."""

from __future__ import annotations

from torch import Tensor


def document_numbers(tokens: Tensor, end_of_document: int) -> Tensor:
    """[..., n] from tokens [..., n]: 0 up to the first end, that with it, then 1, and so on."""
    ends = tokens == end_of_document
    return ends.cumsum(-1) - ends.long()

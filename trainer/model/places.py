"""Where the tokens of a micro-batch are, where that is not simply in sequences end to end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.context.chunks import Chunks


@dataclass(frozen=True)
class Places:
    """position_T: of each token within its document or sequence, int64. document_BS: where
    documents are kept apart, numbers that are equal for tokens of one, which lie beside each other.
    chunks: where sequences are shared by ranks, which of them are here."""

    position_T: Tensor
    document_BS: Tensor | None = None
    chunks: Chunks | None = None

    @classmethod
    def of_documents(cls, number_BS: Tensor) -> Places:
        """From numbers of documents alone."""
        index_S = torch.arange(number_BS.shape[1], device=number_BS.device)
        begins_BS = torch.ones_like(number_BS, dtype=torch.bool)
        begins_BS[:, 1:] = number_BS[:, 1:] != number_BS[:, :-1]
        start_BS = (index_S * begins_BS).cummax(1).values
        return cls((index_S - start_BS).flatten(), number_BS)

    @classmethod
    def of_chunks(cls, chunks: Chunks, tokens_RL: Tensor) -> Places:
        """Of the rows that a rank of a context group has."""
        return cls(chunks.positions(len(tokens_RL), tokens_RL.device), None, chunks)

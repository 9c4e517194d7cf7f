"""Which document each token of a micro-batch is of, where documents are kept apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """number_BS: equal for tokens of one document, which lie beside each other. position_T: of each
    token within its document, int64."""

    number_BS: Tensor
    position_T: Tensor

    @classmethod
    def of(cls, number_BS: Tensor) -> Documents:
        """From numbers alone."""
        index_S = torch.arange(number_BS.shape[1], device=number_BS.device)
        begins_BS = torch.ones_like(number_BS, dtype=torch.bool)
        begins_BS[:, 1:] = number_BS[:, 1:] != number_BS[:, :-1]
        start_BS = (index_S * begins_BS).cummax(1).values
        return cls(number_BS, (index_S - start_BS).flatten())

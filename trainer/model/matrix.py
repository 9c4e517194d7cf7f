"""A weight matrix under the name that the released checkpoints give it (`NAME.weight`)."""

from __future__ import annotations

import torch
from torch import nn


class Matrix(nn.Module):
    """weight [rows, columns], for parallel.tape.weight_gradients.linear or embedding."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns))

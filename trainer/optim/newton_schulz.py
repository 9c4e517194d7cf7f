"""Newton-Schulz iterations: a matrix U S V^T to one whose singular values are near 1, U V^T.

Shapes: K matrices of M rows and N columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

Coefficients: TypeAlias = tuple[tuple[float, float, float], ...]
"""Of each iteration X <- a X + (b G + c G^2) X with G = X X^T."""

_QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS: Mapping[str, Coefficients] = MappingProxyType(
    {
        # Keller Jordan's, and torch.optim.Muon's: singular values end between 0.7 and 1.2.
        "quintic": (_QUINTIC,) * 5,
        # DeepSeek-V4's: eight that come close, two that settle at 1.
        "hybrid": (_QUINTIC,) * 8 + ((2.0, -1.5, 0.5),) * 2,
    }
)
_SMALLEST_NORM = 1e-7


def orthogonalised(x_KMN: Tensor, iterations: Coefficients) -> Tensor:
    """Each matrix with its singular values near 1, in the type of x.

    float64 is computed in float64; float32 in bfloat16 on CUDA, as everywhere else, and in float32
    on the CPU, where bfloat16 gains little.
    """
    norm_K11 = torch.linalg.matrix_norm(x_KMN, keepdim=True).clamp(min=_SMALLEST_NORM)
    y_KMN = x_KMN / norm_K11  # the largest singular value is at most 1
    if x_KMN.is_cuda and x_KMN.dtype == torch.float32:
        y_KMN = y_KMN.bfloat16()
    tall = x_KMN.shape[1] > x_KMN.shape[2]
    y_KMN = y_KMN.mT if tall else y_KMN
    for a, b, c in iterations:
        gram_KMM = y_KMN @ y_KMN.mT
        factor_KMM = torch.baddbmm(gram_KMM, gram_KMM, gram_KMM, beta=b, alpha=c)
        y_KMN = torch.baddbmm(y_KMN, factor_KMM, y_KMN, beta=a)
    return (y_KMN.mT if tall else y_KMN).to(x_KMN.dtype)


def cost(rows: int, columns: int) -> int:
    """Multiplications of an iteration, but for a factor that is nearly the same for all shapes."""
    return rows * columns * min(rows, columns)

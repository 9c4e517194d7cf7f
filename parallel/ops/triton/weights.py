"""Weights of fp8 products on a GPU: codes and scales in both orders, since on Hopper the operands
of an fp8 product lie along what is summed over."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.ops.fp8.tiles import CODE, blocks


@dataclass(frozen=True)
class Matrices:
    """codes_GOI, scales: in blocks of 128 x 128. The others: the same, each matrix transposed."""

    codes_GOI: Tensor
    scales: Tensor
    codes_GIO: Tensor
    scales_transposed: Tensor

    @classmethod
    def of(cls, weight_GOI: Tensor) -> Matrices:
        each = [blocks(matrix) for matrix in weight_GOI]
        codes = torch.stack([matrix.codes.view(torch.uint8) for matrix in each]).view(CODE)
        scales = torch.stack([matrix.scales for matrix in each])
        turned = codes.view(torch.uint8).transpose(1, 2).contiguous().view(CODE)
        return cls(codes, scales, turned, scales.transpose(1, 2).contiguous())


class TritonWeights:
    """Weights as fp8 holds them, until `forget`: whoever changes weights says so."""

    def __init__(self) -> None:
        self._kept: dict[Tensor, Matrices] = {}

    def of(self, weight: Tensor) -> Matrices:
        """Its matrices."""
        found = self._kept.get(weight)
        if found is None:
            found = Matrices.of(as_group(weight.detach()))
            self._kept[weight] = found
        return found

    def forget(self) -> None:
        """Weights have changed."""
        self._kept.clear()


def as_group(weight: Tensor) -> Tensor:
    """[O, I] or [G, O, I] -> [G, O, I]."""
    return weight.unsqueeze(0) if weight.ndim == 2 else weight

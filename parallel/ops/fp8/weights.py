"""Weights in fp8: quantised when they are first read in a step, and kept to its end."""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.ops.fp8.tiles import blocks
from parallel.ops.precision import accurate_type


class QuantisedWeights:
    """The values that weights have in fp8, by weight, until `forget`: whoever changes weights says
    so. A grouped weight [E, O, I] is as many matrices."""

    def __init__(self) -> None:
        self._values: dict[Tensor, Tensor] = {}

    def values(self, weight: Tensor) -> Tensor:
        """float32 or wider, in the shape of the weight."""
        found = self._values.get(weight)
        if found is None:
            matrices = weight.detach().unsqueeze(0) if weight.ndim == 2 else weight.detach()
            found = torch.stack(list(map(_rounded, matrices))).view(weight.shape)
            self._values[weight] = found
        return found

    def forget(self) -> None:
        """Weights have changed."""
        self._values.clear()


def _rounded(weight_OI: Tensor) -> Tensor:
    return blocks(weight_OI).values(accurate_type(weight_OI.dtype))

"""Weights in fp8: quantised when they are first read in a step, and kept to its end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from parallel.ops.fp8.tiles import Tiled, blocks
from parallel.ops.precision import accurate_type


class QuantisedWeights:
    """Weights as fp8 holds them, until `forget`: whoever changes weights says so. A grouped weight
    [E, O, I] is as many matrices. What is kept is codes and scales; on a CPU, which would decode
    them for every product, the numbers that they stand for."""

    def __init__(self) -> None:
        self._tiled: dict[Tensor, Sequence[Tiled]] = {}
        self._values: dict[Tensor, Tensor] = {}

    def values(self, weight: Tensor) -> Tensor:
        """float32 or wider, in the shape of the weight."""
        found = self._values.get(weight)
        if found is None:
            dtype = accurate_type(weight.dtype)
            found = torch.stack([each.values(dtype) for each in self._of(weight)])
            found = found.view(weight.shape)
            if weight.is_cpu:
                self._values[weight] = found
        return found

    def forget(self) -> None:
        """Weights have changed."""
        self._tiled.clear()
        self._values.clear()

    def _of(self, weight: Tensor) -> Sequence[Tiled]:
        """Its matrices."""
        found = self._tiled.get(weight)
        if found is None:
            matrices = weight.detach().unsqueeze(0) if weight.ndim == 2 else weight.detach()
            found = [blocks(each) for each in matrices]
            if not weight.is_cpu:
                self._tiled[weight] = found
        return found

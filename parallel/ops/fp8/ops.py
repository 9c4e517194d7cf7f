"""Ops whose products with the weights of layers are in fp8; all else is that of its precision:
embedding, output head, router, norms and attention (DeepSeek-V3, arXiv 2412.19437, section 3.3.1).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from parallel.ops.fp8.grouped import fp8_grouped_linear
from parallel.ops.fp8.linear import fp8_linear
from parallel.ops.fp8.swiglu import keeping_fp8
from parallel.ops.fp8.weights import QuantisedWeights
from parallel.ops.groups import Groups
from parallel.ops.ops import Ops


@dataclass(frozen=True)
class Fp8Ops(Ops):
    """weights: in fp8, for as long as they stay the same."""

    weights: QuantisedWeights = field(default_factory=QuantisedWeights)

    def weights_changed(self) -> None:
        self.weights.forget()

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return fp8_linear(x, weight, self.deferred, self.weights, keep_e5m6=False)

    def attention_output(self, x: Tensor, weight: Tensor) -> Tensor:
        return fp8_linear(x, weight, self.deferred, self.weights, keep_e5m6=True)

    def grouped_linear(self, x_PI: Tensor, weight_EOI: Tensor, groups: Groups) -> Tensor:
        return fp8_grouped_linear(x_PI, weight_EOI, groups, self.deferred, self.weights)

    def weighted_swiglu(self, gate_up_P2I: Tensor, weight_P: Tensor) -> Tensor:
        return keeping_fp8(self.kernels.weighted_swiglu, gate_up_P2I, weight_P)

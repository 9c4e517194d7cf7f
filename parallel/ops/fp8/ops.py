"""Ops whose products with the weights of layers are in fp8; all else is that of its precision:
embedding, output head, router, norms and attention (DeepSeek-V3, arXiv 2412.19437, section 3.3.1).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from parallel.ops.fp8.grouped import fp8_grouped_linear
from parallel.ops.fp8.linear import fp8_attention_output, fp8_linear
from parallel.ops.fp8.rounded import Rounded, rounded
from parallel.ops.fp8.swiglu import fp8_swiglu_linear
from parallel.ops.fp8.weights import QuantisedWeights
from parallel.ops.groups import Groups
from parallel.ops.ops import Operand, Ops
from parallel.tape.tape import Tape


@dataclass(frozen=True)
class Fp8Ops(Ops):
    """weights: in fp8, for as long as they stay the same."""

    weights: QuantisedWeights = field(default_factory=QuantisedWeights)

    def weights_changed(self) -> None:
        self.weights.forget()

    def operand(self, tape: Tape, x_TC: Tensor, recompute: bool) -> Operand:
        return Rounded(*tape.compute(rounded, x_TC, recompute=recompute))

    def linear(self, x: Operand, weight: Tensor) -> Tensor:
        if isinstance(x, Rounded):
            return fp8_linear(x, weight, self.deferred, self.weights)
        y_TO = self.linear(rounded(x.flatten(0, -2)), weight)
        return y_TO.view(*x.shape[:-1], -1)

    def attention_output(self, x_TI: Tensor, weight: Tensor) -> Tensor:
        return fp8_attention_output(x_TI, weight, self.deferred, self.weights)

    def grouped_linear(self, x_PI: Tensor, weight_EOI: Tensor, groups: Groups) -> Tensor:
        return fp8_grouped_linear(rounded(x_PI), weight_EOI, groups, self.deferred, self.weights)

    def swiglu_linear(
        self,
        tape: Tape,
        gate_up_P2I: Tensor,
        weight_P: Tensor,
        down_EOI: Tensor,
        groups: Groups,
        recompute: bool,
    ) -> Tensor:
        return fp8_swiglu_linear(
            self.kernels.weighted_swiglu, gate_up_P2I, weight_P, down_EOI, groups,
            self.deferred, self.weights, keep_output=not recompute,
        )  # fmt: skip

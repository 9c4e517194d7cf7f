"""Ops whose products with the weights of layers are in fp8; all else is that of its precision:
embedding, output head, router, norms and attention (DeepSeek-V3, arXiv 2412.19437, section 3.3.1).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from parallel.ops.fp8.linear import fp8_attention_output, fp8_linear
from parallel.ops.fp8.product import AnyProduct, Fp8GroupedProduct, Fp8Product
from parallel.ops.fp8.rounded import Rounded, rounded
from parallel.ops.fp8.swiglu import RoundingKernel, fp8_swiglu_linear
from parallel.ops.fp8.tiles import Tiled, tiles_along_rows
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
        return Rounded(*tape.compute(rounded, x_TC, False, self.quantise, recompute=recompute))

    def linear(self, x: Operand, weight: Tensor) -> Tensor:
        if isinstance(x, Rounded):
            return fp8_linear(x, self.product(weight))
        y_TO = self.linear(rounded(x.flatten(0, -2), quantise=self.quantise), weight)
        return y_TO.view(*x.shape[:-1], -1)

    def attention_output(self, x_TI: Tensor, weight: Tensor) -> Tensor:
        return fp8_attention_output(x_TI, self.product(weight))

    def grouped_linear(self, x: Operand, weight_EOI: Tensor, groups: Groups) -> Tensor:
        rows = x if isinstance(x, Rounded) else rounded(x, quantise=self.quantise)
        return fp8_linear(rows, self.grouped_product(weight_EOI, groups))

    def swiglu_linear(
        self, gate_TI: Tensor, up_TI: Tensor, weight: Tensor, recompute: bool
    ) -> Tensor:
        kernel = RoundingKernel.of(self.kernels.swiglu, self.quantise)
        return fp8_swiglu_linear(kernel, self.product(weight), recompute, gate_TI, up_TI)

    def weighted_swiglu_linear(
        self,
        gate_up_P2I: Tensor,
        weight_P: Tensor,
        weight_EOI: Tensor,
        groups: Groups,
        recompute: bool,
    ) -> Tensor:
        product, kernel = self.grouped_product(weight_EOI, groups), self.rounded_swiglu()
        return fp8_swiglu_linear(kernel, product, recompute, gate_up_P2I, weight_P)

    # ---- what another way to multiply does otherwise ----

    def rounded_swiglu(self) -> RoundingKernel:
        """That of experts."""
        return RoundingKernel.of(self.kernels.weighted_swiglu, self.quantise)

    def quantise(self, x_TC: Tensor, power_of_two: bool = False) -> Tiled:
        """In tiles along rows."""
        return tiles_along_rows(x_TC, power_of_two)

    def product(self, weight: Tensor) -> AnyProduct:
        """Those with a weight [O, I]."""
        return Fp8Product(weight, self.deferred, self.weights)

    def grouped_product(self, weight_EOI: Tensor, groups: Groups) -> AnyProduct:
        """Those with the weights of experts."""
        return Fp8GroupedProduct(weight_EOI, groups, self.deferred, self.weights)

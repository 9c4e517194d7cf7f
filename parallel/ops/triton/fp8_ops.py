"""Ops whose products in fp8 run by the kernels of this folder, on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from parallel.ops.fp8.ops import Fp8Ops
from parallel.ops.fp8.swiglu import RoundingKernel
from parallel.ops.fp8.tiles import Tiled
from parallel.ops.groups import Groups
from parallel.ops.triton.choice import ScaledProducts
from parallel.ops.triton.fp8_products import TritonProduct
from parallel.ops.triton.kernels import ROUNDED_SWIGLU
from parallel.ops.triton.quantise import quantise_rows
from parallel.ops.triton.weights import TritonWeights


@dataclass(frozen=True)
class TritonFp8Ops(Fp8Ops):
    """codes: of weights, for as long as they stay the same. products: whose kernels multiply."""

    codes: TritonWeights = field(default_factory=TritonWeights)
    products: ScaledProducts = field(default_factory=ScaledProducts)

    def weights_changed(self) -> None:
        self.codes.forget()

    def quantise(self, x_TC: Tensor, power_of_two: bool = False) -> Tiled:
        return quantise_rows(x_TC.contiguous(), power_of_two)

    def rounded_swiglu(self) -> RoundingKernel:
        return ROUNDED_SWIGLU

    def product(self, weight: Tensor) -> TritonProduct:
        return TritonProduct(weight, None, self.deferred, self.codes, self.products.one)

    def grouped_product(self, weight_EOI: Tensor, groups: Groups) -> TritonProduct:
        experts = self.products.experts
        return TritonProduct(weight_EOI, groups, self.deferred, self.codes, experts)

"""The kernels that a model uses between its products."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.ops.cross_entropy import SOFTMAX, Softmax
from parallel.ops.grouped import AddGrouped, add_grouped_product
from parallel.ops.kernel import Kernel
from parallel.ops.norm import RMS_NORM
from parallel.ops.rotary import ROTARY, Rotary
from parallel.ops.sum_rows import AddRows, add_rows
from parallel.ops.swiglu import SWIGLU, WEIGHTED_SWIGLU, WEIGHTED_SWIGLU_TO_COMPILE


@dataclass(frozen=True)
class Kernels:
    """By default, those of torch one after the other. add_grouped_product: adds weight gradients of
    experts, as its default says. add_rows: as AddRows says."""

    rms_norm: Kernel = RMS_NORM
    swiglu: Kernel = SWIGLU
    weighted_swiglu: Kernel = WEIGHTED_SWIGLU
    add_grouped_product: AddGrouped = add_grouped_product
    rotary: Rotary = ROTARY
    add_rows: AddRows = add_rows
    softmax: Softmax = SOFTMAX

    @classmethod
    def compiled(cls) -> Kernels:
        """Fused by torch.compile; trainer/config/validate.py says what it needs."""
        return cls(RMS_NORM.compiled(), SWIGLU.compiled(), WEIGHTED_SWIGLU_TO_COMPILE.compiled())

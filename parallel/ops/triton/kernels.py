"""Of what a model uses between its products, and of weight gradients of experts, what these kernels
do; the rest stays torch's."""

from __future__ import annotations

from torch import Tensor

from parallel.ops.kernel import Kernel
from parallel.ops.kernels import Kernels
from parallel.ops.triton.grouped import add_grouped_product
from parallel.ops.triton.swiglu import weighted_swiglu, weighted_swiglu_backward


def triton_kernels() -> Kernels:
    """Their gradients are in the types of what they are of."""
    return Kernels(
        weighted_swiglu=Kernel(_forward, _backward), add_grouped_product=add_grouped_product
    )


def _forward(gate_up_P2I: Tensor, weight_P: Tensor) -> tuple[Tensor]:
    return (weighted_swiglu(gate_up_P2I.contiguous(), weight_P.contiguous()),)


def _backward(grad_PI: Tensor, gate_up_P2I: Tensor, weight_P: Tensor) -> tuple[Tensor, ...]:
    return weighted_swiglu_backward(
        grad_PI.contiguous(), gate_up_P2I.contiguous(), weight_P.contiguous()
    )

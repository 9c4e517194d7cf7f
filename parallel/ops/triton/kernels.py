"""Of what a model uses between its products, and of weight gradients of experts, what these kernels
do; the rest stays as it was."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from parallel.ops.fp8.swiglu import RoundingKernel
from parallel.ops.fp8.tiles import TILE, Tiled
from parallel.ops.kernel import Kernel
from parallel.ops.kernels import Kernels
from parallel.ops.triton.grouped import add_grouped_product
from parallel.ops.triton.rotary import ROTARY
from parallel.ops.triton.softmax import SOFTMAX
from parallel.ops.triton.sum_rows import sum_rows
from parallel.ops.triton.swiglu import (
    weighted_swiglu,
    weighted_swiglu_backward,
    weighted_swiglu_in_fp8,
)


def with_triton(others: Kernels) -> Kernels:
    """Gradients are in the types of what they are of. others: does the rest."""
    return replace(
        others, weighted_swiglu=Kernel(_forward, _backward), add_rows=sum_rows, rotary=ROTARY,
        add_grouped_product=add_grouped_product, softmax=SOFTMAX,
    )  # fmt: skip


def _forward(gate_up_P2I: Tensor, weight_P: Tensor) -> tuple[Tensor]:
    return (weighted_swiglu(gate_up_P2I.contiguous(), weight_P.contiguous()),)


def _backward(grad_PI: Tensor, gate_up: Tensor | Tiled, weight_P: Tensor) -> tuple[Tensor, ...]:
    gate_up = gate_up if isinstance(gate_up, Tiled) else gate_up.contiguous()
    return weighted_swiglu_backward(grad_PI.contiguous(), gate_up, weight_P.contiguous())


def _rounded_forward(gate_up: Tensor | Tiled, weight_P: Tensor) -> Tiled:
    gate_up = gate_up if isinstance(gate_up, Tiled) else gate_up.contiguous()
    return weighted_swiglu_in_fp8(gate_up, weight_P.contiguous())


def _read(gate_up: Tiled, dtype: torch.dtype) -> Tensor | Tiled:
    """As it is, where no tile has of both gate and up."""
    in_tiles = gate_up.codes.shape[1] % (2 * TILE) == 0
    return gate_up if in_tiles else gate_up.values(dtype)


ROUNDED_SWIGLU = RoundingKernel(_rounded_forward, _backward, _read)

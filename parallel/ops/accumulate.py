"""Where the gradient of a weight accumulates.

Products keep their weight on the autograd context as it is, `ctx.weight`, and not among the saved
tensors: what hooks on those give back (a copy from the CPU, say) has no gradient buffer.
"""

from __future__ import annotations

from torch import Tensor, nn


def gradient_of(weight: Tensor) -> Tensor:
    """The buffer to which each micro-batch adds its gradient of `weight`.

    It must exist: parallel/reduce/gradients.py makes it, as a view of a flat buffer.
    """
    if weight.grad is None:
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)} has no gradient buffer: make the Gradients "
            "of the model before its first backward pass"
        )
    return weight.grad


def set_gradient(parameter: nn.Parameter, buffer: Tensor) -> None:
    """Let the gradients of `parameter` accumulate in `buffer`, which has its shape."""
    if buffer.dtype != parameter.dtype:
        parameter.grad_dtype = buffer.dtype  # what autograd adds is widened first
    parameter.grad = buffer

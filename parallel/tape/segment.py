"""A segment: a piece of a pass's computation, cut from the graph before and after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Segment:
    """function(*inputs) gave `outputs`, of which `leaves` are the same values cut from the graph:
    they collect the gradients that `backward` starts from. layer: that it is of."""

    function: Callable[..., Any]
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]  # with their graph; empty while a recomputed segment is released
    leaves: tuple[Any, ...]
    layer: str

    def backward(self) -> None:
        pairs = [
            (output, leaf.grad)
            for output, leaf in zip(self.outputs, self.leaves)
            if isinstance(output, Tensor) and output.requires_grad and leaf.grad is not None
        ]
        if pairs:
            torch.autograd.backward([p[0] for p in pairs], [p[1] for p in pairs])

    def release(self) -> None:
        """Free the memory of the outputs, except what they share with the inputs."""
        kept = {address(value) for value in self.inputs if isinstance(value, Tensor)}
        for leaf in self.leaves:
            if isinstance(leaf, Tensor) and address(leaf) not in kept:
                leaf.untyped_storage().resize_(0)

    def restore(self) -> None:
        """Run the function again, with grad, and give the outputs their values back."""
        with torch.enable_grad():
            self.outputs = as_tuple(self.function(*self.inputs))
        for leaf, output in zip(self.leaves, self.outputs):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().nbytes() == 0:
                # Storage to storage, so that views and saved tensors see it, and no version moves.
                source = output.detach().untyped_storage()
                leaf.untyped_storage().resize_(source.nbytes())
                leaf.untyped_storage().copy_(source)


def as_tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def leaf_of(value: Any) -> Any:
    """The same values, cut from the graph; a leaf that collects a gradient if it can have one."""
    if not isinstance(value, Tensor):
        return value
    leaf = value.detach()
    return leaf.requires_grad_() if leaf.is_floating_point() else leaf


def address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()

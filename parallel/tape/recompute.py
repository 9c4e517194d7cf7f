"""Recompute: keep what a function read, and compute what it gave again when the backward needs it.

Its outputs are ordinary tensors, which others read and autograd saves for them. When all have read
them their memory is freed under those tensors, and filled again before the first backward that
looks at it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.autograd.graph import GradientEdge, get_gradient_edge


class Recomputed:
    """One call of `function`; apply it once."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._inputs: tuple[Any, ...] = ()
        self._outputs: list[GradientEdge | None] = []  # of the second time, in its graph
        self._storages: list[UntypedStorage | None] = []  # of its outputs; None for one that stays

    def __call__(self, *inputs: Any) -> Any:
        """Run it, keeping no graph but one node."""
        outputs = _Call.apply(self, *inputs)
        return outputs if len(outputs) > 1 else outputs[0]

    def first(self, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
        self._inputs = inputs
        outputs = as_tuple(self.function(*inputs))
        self._storages = [output.untyped_storage() for output in outputs]
        return outputs

    def release(self, kept: Sequence[Tensor]) -> None:
        """Free the outputs, except for what they share with the inputs and with `kept`."""
        others = (*kept, *(value for value in self._inputs if isinstance(value, Tensor)))
        stay = {other.untyped_storage()._cdata for other in others}
        self._storages = [None if s is None or s._cdata in stay else s for s in self._storages]
        for storage in self._storages:
            if storage is not None:
                storage.resize_(0)

    def restore(self) -> None:
        """Run it again, with its graph, and fill the memory that was freed."""
        self._inputs = tuple(_leaf(value) for value in self._inputs)
        with torch.enable_grad():
            outputs = as_tuple(self.function(*self._inputs))
        for storage, output in zip(self._storages, outputs):
            source = output.untyped_storage()
            if storage is not None and storage.nbytes() == 0:
                # Storage to storage, so that views and saved tensors see it, and no version moves.
                storage.resize_(source.nbytes())
                storage.copy_(source)
        self._storages = []
        self._outputs = [get_gradient_edge(o) if o.requires_grad else None for o in outputs]

    def backward(self, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        """The gradients of its inputs."""
        both = zip(self._outputs, gradients)
        pairs = [(e, g) for e, g in both if e is not None and g is not None]
        inputs, self._inputs, self._outputs = self._inputs, (), []
        if pairs:
            torch.autograd.backward([edge for edge, _ in pairs], [grad for _, grad in pairs])
        return tuple(value.grad if isinstance(value, Tensor) else None for value in inputs)


class Recomputing:
    """The calls of a micro-batch since the last release. restoring: whether one of them runs again:
    inside of what is recomputed, `compute` says nothing new."""

    def __init__(self) -> None:
        self.restoring = False
        self._calls: list[Recomputed] = []

    def call(self, function: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
        """`function(*inputs)`, of which the inputs are kept."""
        self._calls.append(Recomputed(function))
        return self._calls[-1](*inputs)

    def release(self, kept: Sequence[Tensor]) -> list[Recomputed]:
        """Free what they gave, but `kept`; the backward must restore it when it comes here."""
        calls, self._calls = self._calls, []
        for call in calls:
            call.release(kept)
        return calls

    def restore(self, calls: Sequence[Recomputed]) -> None:
        """In the order in which they ran."""
        self.restoring = True
        for call in calls:
            call.restore()
        self.restoring = False


class _Call(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Recomputed, *inputs: Any) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.set_materialize_grads(False)
        return call.first(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, *ctx.call.backward(gradients))


class Release(torch.autograd.Function):
    """The identity; its backward first calls `restore`: whoever read what is restored there comes
    after it, since autograd goes from the last node made to the first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, restore: Callable[[], None]) -> Tensor:
        ctx.restore = restore
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.restore()
        return gradient, None


def as_tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def _leaf(value: Any) -> Any:
    """The same values, cut from the graph, a leaf that collects a gradient if it had one."""
    if not (isinstance(value, Tensor) and value.requires_grad):
        return value
    return value.detach().requires_grad_()

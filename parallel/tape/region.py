"""A region: what a pass computes between two exchanges. It is one graph, with one backward.

A region holds no values. What arrives enters the graph through one node, which collects the
gradients that reach it; what leaves is known by its place in the graph. So a value lives as long as
something will read it, in the forward or in the backward, and no longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from parallel.tape.collective import Collective
from parallel.tape.offload import Offloaded
from parallel.tape.recompute import Recomputed


@dataclass(frozen=True)
class Exchange:
    """What leads from one region to the next. sent: how many of the tensors that left; the others,
    `across`, went across. What arrives for those that were sent may be more. turns: how often the
    backward yields meanwhile."""

    name: str
    collective: Collective
    sent: int
    across: int
    turns: int = 1


class Region:
    """name: what it follows. exchange: that it ends with, if any. layer: of the model, in which it
    ends. recomputed: calls whose outputs are to be restored before its backward. offloaded: what is
    to be fetched before it. gradients: of what entered, after the backward; None where nothing
    depends on it."""

    def __init__(self, name: str) -> None:
        self.name, self.layer = name, ""
        self.exchange: Exchange | None = None
        self.recomputed: list[Recomputed] = []
        self.offloaded: list[Offloaded] = []
        self.gradients: tuple[Tensor | None, ...] = ()
        self._shapes: tuple[Tensor, ...] = ()
        self._left: list[GradientEdge | None] = []
        self._losses: list[tuple[GradientEdge, Tensor]] = []
        self._running = False

    def enter(self, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The same values, at the start of this region's graph; those of integers have no part
        in it."""
        if not values:
            return ()
        self._shapes = tuple(value.new_zeros(()).expand(value.shape) for value in values)
        self.gradients = (None,) * len(values)
        start = torch.empty(0, requires_grad=True)
        return _Enter.apply(start, self, *(value.detach() for value in values))

    def leave(self, values: Sequence[Tensor], exchange: Exchange | None, layer: str) -> None:
        """The region ends, and `values` leave it. Their memory must still be there."""
        self._left = [get_gradient_edge(v) if v.requires_grad else None for v in values]
        self.exchange, self.layer = exchange, layer

    def add_loss(self, value: Tensor, weight: float) -> None:
        """The backward starts from this scalar, too."""
        if value.requires_grad:
            self._losses.append((get_gradient_edge(value), torch.full_like(value, weight)))

    @property
    def begins_with_values(self) -> bool:
        return bool(self._shapes)

    @property
    def wants_gradient(self) -> list[bool]:
        """Of each that has left, whether its gradient is of use."""
        return [edge is not None for edge in self._left]

    def fetch(self) -> None:
        """Start to bring back what waits on the host, if that has not been done."""
        offloaded, self.offloaded = self.offloaded, []
        for each in offloaded:
            each.fetch()

    def gradient(self, number: int) -> Tensor:
        """Of what entered at this place; zeros where nothing depends on it."""
        gradient = self.gradients[number]
        return self._shapes[number] if gradient is None else gradient

    def backward(self, gradients: Sequence[Tensor | None]) -> None:
        """From the gradients of all that has left, in order, to those of what entered."""
        starts = [(e, g) for e, g in zip(self._left, gradients) if e is not None and g is not None]
        starts += self._losses
        self._left, self._losses, self._running = [], [], True
        if starts:
            torch.autograd.backward([edge for edge, _ in starts], [grad for _, grad in starts])
        self._running = False

    def collect(self, gradients: tuple[Tensor | None, ...]) -> None:
        """Raises RuntimeError where they come from another region's backward."""
        if not self._running:
            raise RuntimeError(
                f"{self.layer}: a value computed {self.name} was used beyond the next exchange: it "
                "must go through it, as `across`"
            )
        self.gradients = gradients


class _Enter(torch.autograd.Function):
    """The identity; its backward leaves the gradients with the region."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, region: Region, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.region = region
        ctx.set_materialize_grads(False)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
        ctx.region.collect(gradients)
        return (None,) * (2 + len(gradients))

"""In which type rows travel to their experts, their own or fp8, and what rounds and adds them up.

In fp8, as DeepSeek-V3 sends them (arXiv 2412.19437, section 3.3.3), a row is codes and a scale for
each 128 of them, a power of two. Tokens arrive so, and products read them so. Gradients of results,
which go the same way, are read in their own type. What comes back, results and gradients of tokens,
is not rounded: it is added up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from parallel.ops.fp8.rounded import Quantise, Rounded, carrier_of, rounded
from parallel.ops.fp8.tiles import Tiled, tiles_along_rows
from parallel.ops.ops import Operand
from parallel.ops.sum_rows import AddRows, add_rows
from parallel.tape.collective import Collective, Pending


class Wire(Protocol):
    """tokens, results: what to send them with, from a collective that sends anything. read: what
    has arrived of tokens, their routing weights and their places. stay_tokens, stay_results: the
    same rounding where nothing travels. add_rows: adds up copies of rows that have come back."""

    @property
    def add_rows(self) -> AddRows: ...

    def tokens(self, send: Collective) -> Collective: ...

    def results(self, add_up: Collective) -> Collective: ...

    def read(self, arrived: Sequence[Tensor]) -> tuple[Operand, Tensor, Tensor]: ...

    def stay_tokens(self, x_TD: Tensor) -> Operand: ...

    def stay_results(self, y_ND: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class PlainWire:
    """Rows in their own type."""

    add_rows: AddRows = add_rows

    def tokens(self, send: Collective) -> Collective:
        return send

    def results(self, add_up: Collective) -> Collective:
        return add_up

    def read(self, arrived: Sequence[Tensor]) -> tuple[Operand, Tensor, Tensor]:
        x_ND, weights_NK, place_NK = arrived
        return x_ND, weights_NK, place_NK

    def stay_tokens(self, x_TD: Tensor) -> Operand:
        return x_TD

    def stay_results(self, y_ND: Tensor) -> Tensor:
        return y_ND


@dataclass(frozen=True)
class Fp8Wire:
    """Rows in fp8. quantise: rounds them."""

    add_rows: AddRows = add_rows
    quantise: Quantise = tiles_along_rows

    def tokens(self, send: Collective) -> Collective:
        return _Tokens(send, self.quantise)

    def results(self, add_up: Collective) -> Collective:
        return _Results(add_up, self.quantise)

    def read(self, arrived: Sequence[Tensor]) -> tuple[Operand, Tensor, Tensor]:
        carrier_ND, weights_NK, place_NK, codes_ND, scales = arrived
        return Rounded(carrier_ND, codes_ND, scales), weights_NK, place_NK

    def stay_tokens(self, x_TD: Tensor) -> Operand:
        return rounded(x_TD, True, self.quantise)

    def stay_results(self, y_ND: Tensor) -> Tensor:
        return _RoundGradient.apply(y_ND, self.quantise)


@dataclass(frozen=True)
class _Tokens:
    """The first tensor goes in fp8; what arrives of it is a carrier, and codes and scales after all
    the others. Its gradients come back as they are."""

    send: Collective
    quantise: Quantise

    @property
    def copies(self) -> bool:
        return True

    def start(self, *tensors: Tensor) -> Pending:
        x_TD, *others = tensors

        def finish(codes_ND: Tensor, scales: Tensor, *arrived: Tensor) -> tuple[Tensor, ...]:
            carrier_ND = carrier_of(x_TD.new_empty(1).expand(codes_ND.shape))
            return carrier_ND, *arrived, codes_ND, scales

        return _Finished(_start(self.send, self.quantise(x_TD, True), others), finish)

    def reversed(self) -> Collective:
        return self.send.reversed()


@dataclass(frozen=True)
class _Results:
    """Rows as they are, whose gradients go in fp8."""

    add_up: Collective
    quantise: Quantise

    @property
    def copies(self) -> bool:
        return self.add_up.copies

    def start(self, *tensors: Tensor) -> Pending:
        return self.add_up.start(*tensors)

    def reversed(self) -> Collective:
        return _Gradients(self.add_up, self.quantise)


@dataclass(frozen=True)
class _Gradients:
    """The way of results backwards, in fp8; what arrives is read in its own type."""

    add_up: Collective
    quantise: Quantise

    @property
    def copies(self) -> bool:
        return True

    def start(self, *tensors: Tensor) -> Pending:
        (grad_TD,) = tensors
        dtype = grad_TD.dtype

        def finish(codes_ND: Tensor, scales: Tensor) -> tuple[Tensor, ...]:
            return (Tiled.along_rows(codes_ND, scales).values(dtype),)

        return _Finished(_start(self.add_up.reversed(), self.quantise(grad_TD, True), ()), finish)

    def reversed(self) -> Collective:
        return _Results(self.add_up, self.quantise)


def _start(send: Collective, x: Tiled, others: Sequence[Tensor]) -> Pending:
    return send.start(x.codes, x.scales, *others)


@dataclass(frozen=True)
class _Finished:
    """An exchange in flight, and what makes results of what has arrived."""

    inner: Any
    finish: Callable[..., tuple[Tensor, ...]]

    def wait(self) -> None:
        self.inner.wait()

    def results(self) -> tuple[Tensor, ...]:
        return self.finish(*self.inner.results())

    def follow(self) -> None:
        """Make the current stream of a GPU wait until it is done."""
        self.inner.follow()

    @property
    def on_completion(self) -> Callable[[Callable[[], None]], None] | None:
        """That of the inner one, if it can tell."""
        return getattr(self.inner, "on_completion", None)


class _RoundGradient(torch.autograd.Function):
    """The identity, whose gradient is rounded as it is on its way."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, quantise: Quantise) -> Tensor:
        ctx.quantise = quantise
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.quantise(grad, True).values(grad.dtype), None

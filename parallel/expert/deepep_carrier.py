"""What dispatch asks of DeepEP, whatever its version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

from torch import Tensor

Rows: TypeAlias = Tensor | tuple[Tensor, Tensor]
"""bfloat16 [T, D], or fp8 codes [T, D] and float32 scales [T, D / 128]."""


class Event(Protocol):
    """deep_ep.EventOverlap."""

    def current_stream_wait(self) -> None: ...


@dataclass(frozen=True)
class Largest:
    """What buffers are made for. tokens: of a micro-batch on a rank. fp8: whether rows go so. sms:
    multiprocessors that kernels may use (even), 0 for DeepEP's own choice."""

    tokens: int
    dim: int
    top_k: int
    fp8: bool
    sms: int


class Came(NamedTuple):
    """Of a first dispatch: rows, routing weights and slots (-1 elsewhere) that have come, pairs of
    each slot, and the handle of this routing."""

    x: Rows
    weights_NK: Tensor
    slot_NK: Tensor
    sizes: list[int]
    handle: Any
    event: Event


class Carrier(Protocol):
    """Results are there once the event has been waited for."""

    def layout(self, place_TK: Tensor, experts: int) -> Any:
        """What `first` needs of the routing beyond it. experts: places of all ranks."""

    def first(self, x: Rows, weights_TK: Tensor, place_TK: Tensor, layout: Any) -> Came:
        """Send rows to the ranks of their places. The host waits for the number to come."""

    def again(self, x: Rows, handle: Any) -> tuple[Rows, Event]:
        """Send other rows the same way."""

    def back(
        self, x_ND: Tensor, weights_NK: Tensor | None, handle: Any
    ) -> tuple[Tensor, Tensor | None, Event]:
        """Send rows, and gradients of weights, back to where they came from, added up."""

"""Dispatch by DeepEP (V1, `deep_ep.Buffer`), where it is installed: NVLink and RDMA by kernels.

A token crosses to a node once, and goes to each rank there with a chosen expert. DeepEP gathers,
sends and adds up by itself; `combine` is a plain sum. The backward of combine is a dispatch by the
same handle, that of dispatch a combine, which adds up the gradients of the routing weights, too.

Its first dispatch of a micro-batch makes the host wait for the number of rows to come, once per MoE
layer. It takes rows in bfloat16 or fp8, and float32 weights only. Written from its documentation,
and tested against a fake: it has not run with DeepEP.

Shapes: T tokens here, K experts per token, N rows received, L slots of a rank.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.errors import TandemError
from parallel.expert.dispatch import Places, Received, Route
from parallel.expert.placement import ExpertPlacement
from parallel.expert.router import count
from parallel.expert.wire import Wire
from parallel.ops.groups import Groups
from parallel.tape.passes import Pass
from parallel.tape.tape import Tape


class DeepEPError(TandemError):
    """DeepEP cannot be used here."""

    exit_code = 2


class Event(Protocol):
    """deep_ep.EventOverlap."""

    def current_stream_wait(self) -> None: ...


class Buffer(Protocol):
    """Of deep_ep.Buffer what is used here."""

    def get_dispatch_layout(
        self, topk_idx: Tensor, num_experts: int
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Event]: ...

    def dispatch(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        handle: Any = None,
        num_tokens_per_rank: Tensor | None = None,
        num_tokens_per_rdma_rank: Tensor | None = None,
        is_token_in_rank: Tensor | None = None,
        num_tokens_per_expert: Tensor | None = None,
        topk_idx: Tensor | None = None,
        topk_weights: Tensor | None = None,
        *,
        async_finish: bool = False,
    ) -> tuple[Any, Tensor | None, Tensor | None, list[int] | None, Any, Event]: ...

    def combine(
        self,
        x: Tensor,
        handle: Any,
        topk_weights: Tensor | None = None,
        *,
        async_finish: bool = False,
    ) -> tuple[Tensor, Tensor | None, Event]: ...


def open_buffer(group: dist.ProcessGroup, dim: int, sms: int, device: torch.device) -> Buffer:
    """A buffer for rows of `dim` bfloat16 numbers. sms: multiprocessors that it may use (even), 0
    for its own choice. Collective over the group. Raises DeepEPError."""
    if device.type != "cuda":
        raise DeepEPError(f"mesh.dispatch = deepep needs GPUs, but the run is on {device.type}")
    try:
        kind = importlib.import_module("deep_ep").Buffer
    except ImportError as error:
        raise DeepEPError(
            f"mesh.dispatch = deepep: DeepEP cannot be imported ({error}): install it from "
            "github.com/deepseek-ai/DeepEP, or set mesh.dispatch to hierarchical, which sends as "
            "much between nodes"
        ) from error
    if sms:
        kind.set_num_sms(sms)
    ranks = group.size()
    configs = kind.get_dispatch_config(ranks), kind.get_combine_config(ranks)
    row = dim * torch.bfloat16.itemsize
    nvlink = max(config.get_nvl_buffer_size_hint(row, ranks) for config in configs)
    rdma = max(config.get_rdma_buffer_size_hint(row, ranks) for config in configs)
    buffer: Buffer = kind(group, nvlink, rdma)
    return buffer


class DeepEPDispatcher:
    """See the module. A token chooses copies of redundant experts as in AllToAllDispatcher."""

    def __init__(
        self, buffer: Buffer, placement: ExpertPlacement, device: torch.device, wire: Wire
    ) -> None:
        self.buffer, self.placement, self.wire = buffer, placement, wire
        self._places = Places(placement, device)

    def route(self, tape: Tape, experts_TK: Tensor) -> Pass[Route]:
        place_TK = self._places.of(experts_TK).long()
        trip = _Trip(self.buffer, self.placement.ranks * self.placement.slots)
        # Not an exchange yet; but a turn of a pair, as other backends give it to counts.
        yield from tape.exchange_counts("counts", trip, place_TK)
        return _DeepEPRoute(trip, self.wire, place_TK, self.placement.slots)


@dataclass(frozen=True)
class _DeepEPRoute:
    trip: _Trip
    wire: Wire
    place_TK: Tensor
    slots: int

    def dispatch(
        self, tape: Tape, x_TD: Tensor, weights_TK: Tensor, across_TD: Tensor
    ) -> Pass[tuple[Received, Tensor]]:
        there = self.wire.tokens(_There(self.trip))
        *arrived, across_TD = yield from tape.exchange(
            "dispatch", there, x_TD, weights_TK, self.place_TK, across=(across_TD,)
        )
        x, weights_NK, slot_NK = self.wire.read(arrived)
        here_NK = torch.where(slot_NK < 0, self.slots, slot_NK)
        sizes_L = count(here_NK.flatten(), self.slots + 1)[: self.slots]
        return Received(x, weights_NK, slot_NK, Groups.of(sizes_L, self.trip.sizes)), across_TD

    def combine(self, tape: Tape, y_ND: Tensor, across_TD: Tensor) -> Pass[Tensor]:
        y_TD, across_TD = yield from tape.exchange(
            "combine", self.wire.results(_Back(self.trip)), y_ND, across=(across_TD,), turns=2
        )
        return across_TD + y_TD


@dataclass
class _Trip:
    """What DeepEP knows of one micro-batch in one layer. experts: places of all ranks. layout: its
    arguments of the first dispatch, by name. handle, sizes: from there; pairs of each slot."""

    buffer: Buffer
    experts: int
    layout: dict[str, Tensor | None] = field(default_factory=dict)
    handle: Any = None
    sizes: list[int] = field(default_factory=list)

    def start(self, *tensors: Tensor) -> _InFlight:
        """Plan the trip of tokens to these places [T, K] (int64)."""
        per_rank, per_node, per_expert, in_rank, _ = self.buffer.get_dispatch_layout(
            tensors[0], self.experts
        )
        self.layout = {
            "num_tokens_per_rank": per_rank, "num_tokens_per_rdma_rank": per_node,
            "is_token_in_rank": in_rank, "num_tokens_per_expert": per_expert,
        }  # fmt: skip
        return _InFlight(None, ())  # the current stream waits already


@dataclass
class _InFlight:
    event: Event | None
    received: tuple[Tensor, ...]

    def wait(self) -> None:
        if self.event is not None:
            self.event.current_stream_wait()

    follow = wait

    def results(self) -> tuple[Tensor, ...]:
        received, self.received = self.received, ()
        return received


@dataclass(frozen=True)
class _There:
    """Rows to the ranks of their places: the first time x, weights and places; then, by the
    handle, gradients of what came back."""

    trip: _Trip

    @property
    def copies(self) -> bool:
        return True  # it records the use of x by its stream, so memory that is freed is not reused

    def start(self, *tensors: Tensor) -> _InFlight:
        trip, (x, others) = self.trip, _rows_and_others(tensors)
        if trip.handle is not None:
            x_ND, *_, event = trip.buffer.dispatch(x, trip.handle, async_finish=True)
            return _InFlight(event, _apart(x_ND))
        weights_TK, place_TK = others
        x_ND, slot_NK, weights_NK, sizes, trip.handle, event = trip.buffer.dispatch(
            x, topk_idx=place_TK, topk_weights=weights_TK.contiguous(), async_finish=True,
            **trip.layout,
        )  # fmt: skip
        assert slot_NK is not None and weights_NK is not None and sizes is not None
        trip.sizes = sizes
        return _InFlight(event, (*_apart(x_ND), weights_NK, slot_NK))

    def reversed(self) -> _Back:
        return _Back(self.trip)


@dataclass(frozen=True)
class _Back:
    """Rows back to where they came from, added up; beside them gradients of weights, if any."""

    trip: _Trip

    @property
    def copies(self) -> bool:
        return True

    def start(self, *tensors: Tensor) -> _InFlight:
        x, *weights = (tensor.contiguous() for tensor in tensors)
        x_TD, weights_TK, event = self.trip.buffer.combine(
            x, self.trip.handle, topk_weights=weights[0] if weights else None, async_finish=True
        )
        return _InFlight(event, (x_TD,) if weights_TK is None else (x_TD, weights_TK))

    def reversed(self) -> _There:
        return _There(self.trip)


def _rows_and_others(
    tensors: tuple[Tensor, ...],
) -> tuple[Tensor | tuple[Tensor, Tensor], tuple[Tensor, ...]]:
    """Rows, as codes and scales where they are in fp8, and what goes beside them."""
    first, *others = (tensor.contiguous() for tensor in tensors)
    if first.dtype != torch.float8_e4m3fn:
        return first, tuple(others)
    return (first, others[0]), tuple(others[1:])


def _apart(x: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return (x,) if isinstance(x, Tensor) else x

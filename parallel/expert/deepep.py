"""Dispatch by DeepEP, where it is installed: NVLink and RDMA by kernels.

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
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.errors import TandemError
from parallel.expert.deepep_carrier import Carrier, Event, Largest, Rows
from parallel.expert.deepep_v1 import DeepEPV1
from parallel.expert.deepep_v2 import DeepEPV2
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


def open_carrier(group: dist.ProcessGroup, largest: Largest, device: torch.device) -> Carrier:
    """V2's where DeepEP has it, else V1's. Collective over the group. Raises DeepEPError."""
    if device.type != "cuda":
        raise DeepEPError(f"mesh.dispatch = deepep needs GPUs, but the run is on {device.type}")
    try:
        deep_ep = importlib.import_module("deep_ep")
    except ImportError as error:
        raise DeepEPError(
            f"mesh.dispatch = deepep: DeepEP cannot be imported ({error}): install it from "
            "github.com/deepseek-ai/DeepEP, or set mesh.dispatch to hierarchical, which sends as "
            "much between nodes"
        ) from error
    if hasattr(deep_ep, "ElasticBuffer"):
        return DeepEPV2.open(deep_ep.ElasticBuffer, group, largest)
    return DeepEPV1.open(deep_ep.Buffer, group, largest)


class DeepEPDispatcher:
    """See the module. A token chooses copies of redundant experts as in AllToAllDispatcher."""

    def __init__(
        self, carrier: Carrier, placement: ExpertPlacement, device: torch.device, wire: Wire
    ) -> None:
        self.carrier, self.placement, self.wire = carrier, placement, wire
        self._places = Places(placement, device)

    def route(self, tape: Tape, experts_TK: Tensor) -> Pass[Route]:
        place_TK = self._places.of(experts_TK).long()
        trip = _Trip(self.carrier, self.placement.ranks * self.placement.slots)
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
    """What DeepEP knows of one micro-batch in one layer. experts: places of all ranks. layout: of
    the first dispatch. handle, sizes: from there; pairs of each slot."""

    carrier: Carrier
    experts: int
    layout: Any = None
    handle: Any = None
    sizes: list[int] = field(default_factory=list)

    def start(self, *tensors: Tensor) -> _InFlight:
        """Plan the trip of tokens to these places [T, K] (int64)."""
        self.layout = self.carrier.layout(tensors[0], self.experts)
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
            x_ND, event = trip.carrier.again(x, trip.handle)
            return _InFlight(event, _apart(x_ND))
        weights_TK, place_TK = others
        came = trip.carrier.first(x, weights_TK, place_TK, trip.layout)
        trip.handle, trip.sizes = came.handle, came.sizes
        return _InFlight(came.event, (*_apart(came.x), came.weights_NK, came.slot_NK))

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
        trip = self.trip
        x_TD, weights_TK, event = trip.carrier.back(x, weights[0] if weights else None, trip.handle)
        return _InFlight(event, (x_TD,) if weights_TK is None else (x_TD, weights_TK))

    def reversed(self) -> _There:
        return _There(self.trip)


def _rows_and_others(
    tensors: tuple[Tensor, ...],
) -> tuple[Rows, tuple[Tensor, ...]]:
    """Rows, as codes and scales where they are in fp8, and what goes beside them."""
    first, *others = (tensor.contiguous() for tensor in tensors)
    if first.dtype != torch.float8_e4m3fn:
        return first, tuple(others)
    return (first, others[0]), tuple(others[1:])


def _apart(x: Rows) -> tuple[Tensor, ...]:
    return (x,) if isinstance(x, Tensor) else x

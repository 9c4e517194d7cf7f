"""Sending tokens to the ranks that hold their experts, and the results back.

A backend is a Dispatcher: `route` looks at the routing of one micro-batch and tells other ranks how
much will come; the route's `dispatch` and `combine` are the two exchanges, on the tape. A route
holds all state of its micro-batch. Dropless, and a token goes at most once to each rank: its
routing weights travel with it and are applied there, so that `combine` is a plain sum.

Each expert has a place, rank x slots + slot, and that is the number that travels.

Shapes: T tokens here, K experts per token, D model width, N rows received, R ranks, L slots of a
rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.expert.counts import CountExchange
from parallel.expert.placement import ExpertPlacement
from parallel.expert.router import count
from parallel.expert.rows import RowPlan, SendCopies, SumCopies
from parallel.expert.wire import Wire
from parallel.ops.fp8.rounded import Rounded
from parallel.ops.groups import Groups
from parallel.ops.ops import Operand
from parallel.ops.sum_rows import AddRows
from parallel.tape.passes import Pass
from parallel.tape.tape import Tape


@dataclass(frozen=True)
class ExpertGroups:
    """The ranks that share the experts of a layer, in the order of their placement, twice: counts
    must not wait behind rows."""

    rows: dist.ProcessGroup
    counts: dist.ProcessGroup


class Received(NamedTuple):
    """Tokens for the experts of this rank.

    x: the tokens [N, D], in fp8 where they have come so. weights_NK: their routing weights.
    experts_NK (int64): the slots of the chosen experts on this rank, -1 where a choice lies on
    another rank. groups: the (token, choice) pairs of each slot.
    """

    x: Operand
    weights_NK: Tensor
    experts_NK: Tensor
    groups: Groups

    def parts(self) -> tuple[Any, ...]:
        """As GroupedExperts takes them, each a tensor by itself but the groups."""
        x = self.x if isinstance(self.x, Rounded) else (self.x,)
        return self.weights_NK, self.experts_NK, self.groups, *x


class Route(Protocol):
    """The exchange of one micro-batch in one layer."""

    def dispatch(
        self, tape: Tape, x_TD: Tensor, weights_TK: Tensor, across_TD: Tensor
    ) -> Pass[tuple[Received, Tensor]]:
        """Send each token to the ranks of its experts. across_TD: goes across, and comes out."""

    def combine(self, tape: Tape, y_ND: Tensor, across_TD: Tensor) -> Pass[Tensor]:
        """Send results back and add them by token to what goes across, [T, D]."""


class Dispatcher(Protocol):
    """A backend."""

    def route(self, tape: Tape, experts_TK: Tensor) -> Pass[Route]:
        """Tell the other ranks about these choices (global expert numbers, int64)."""


class LocalDispatcher:
    """All experts are here, in order: nothing is exchanged. experts: how many. wire: whose rounding
    is done all the same, so that a model is the same function in any layout."""

    def __init__(self, experts: int, wire: Wire) -> None:
        self.experts, self.wire = experts, wire

    def route(self, tape: Tape, experts_TK: Tensor) -> Pass[Route]:
        yield from ()
        return _LocalRoute(experts_TK, self.experts, self.wire)


@dataclass(frozen=True)
class _LocalRoute:
    experts_TK: Tensor
    experts: int
    wire: Wire

    def dispatch(
        self, tape: Tape, x_TD: Tensor, weights_TK: Tensor, across_TD: Tensor
    ) -> Pass[tuple[Received, Tensor]]:
        yield from ()
        sizes_E = count(self.experts_TK.flatten(), self.experts)
        groups = Groups(sizes_E.cumsum(0).to(torch.int32), self.experts_TK.numel())
        x = self.wire.stay_tokens(x_TD)
        return Received(x, weights_TK, self.experts_TK, groups), across_TD

    def combine(self, tape: Tape, y_ND: Tensor, across_TD: Tensor) -> Pass[Tensor]:
        yield from ()
        return across_TD + self.wire.stay_results(y_ND)


class AllToAllDispatcher:
    """Exchange over torch.distributed's all_to_all_single (gloo, NCCL).

    A token goes to one copy of each of its experts; the copies of a redundant expert take turns, by
    the token's number.
    """

    def __init__(
        self, groups: ExpertGroups, placement: ExpertPlacement, device: torch.device, wire: Wire
    ) -> None:
        self.group, self.placement, self.wire = groups.rows, placement, wire
        self._counts = CountExchange(groups.counts, device)
        self._places = Places(placement, device)

    def route(self, tape: Tape, experts_TK: Tensor) -> Pass[Route]:
        ranks, slots = self.placement.ranks, self.placement.slots
        place_TK = self._places.of(experts_TK)
        goes_TR = marked(place_TK // slots, ranks)
        pairs_RL = count(place_TK.flatten(), ranks * slots).view(ranks, slots)
        sent = torch.cat([goes_TR.sum(0).unsqueeze(1), pairs_RL], dim=1)
        counts = yield from tape.exchange_counts("counts", self._counts, sent)
        first = self.group.rank() * slots
        here = range(first, first + slots)
        return _AllToAllRoute(self.group, self.wire, here, place_TK, goes_TR, counts)


@dataclass
class _AllToAllRoute:
    """places: those of this rank. counts: waits for, by rank, rows and pairs of each slot."""

    group: dist.ProcessGroup
    wire: Wire
    places: range
    place_TK: Tensor
    goes_TR: Tensor
    counts: Callable[[], tuple[Tensor, ...]]
    _back: SumCopies | None = None

    def dispatch(
        self, tape: Tape, x_TD: Tensor, weights_TK: Tensor, across_TD: Tensor
    ) -> Pass[tuple[Received, Tensor]]:
        on_host, received = self.counts()
        send_rows, receive_rows = on_host[:, :, 0].tolist()
        groups = Groups.of(received[:, 1:].sum(0), on_host[1, :, 1:].sum(0).tolist())
        plan = plan_rows(self.group, send_rows, receive_rows, self.goes_TR, self.wire.add_rows)
        there = SendCopies(plan)
        self._back = there.reversed()
        *arrived, across_TD = yield from tape.exchange(
            "dispatch",
            self.wire.tokens(there),
            x_TD,
            weights_TK,
            self.place_TK,
            across=(across_TD,),
        )
        x, weights_NK, place_NK = self.wire.read(arrived)
        return Received(x, weights_NK, slots_here(place_NK, self.places), groups), across_TD

    def combine(self, tape: Tape, y_ND: Tensor, across_TD: Tensor) -> Pass[Tensor]:
        if self._back is None:
            raise ValueError("combine comes after dispatch")
        y_TD, across_TD = yield from tape.exchange(
            "combine", self.wire.results(self._back), y_ND, across=(across_TD,), turns=2
        )
        return across_TD + y_TD


class Places:
    """Where the experts of a table are, on the device."""

    def __init__(self, placement: ExpertPlacement, device: torch.device) -> None:
        places = placement.places_by_copy()
        self._place_CE = torch.tensor(places, dtype=torch.int32, device=device)

    def of(self, experts_TK: Tensor) -> Tensor:
        """The place that each choice goes to, [T, K] (int32)."""
        copies = len(self._place_CE)
        if copies == 1:
            return self._place_CE[0][experts_TK]
        token_T1 = torch.arange(len(experts_TK), device=experts_TK.device).unsqueeze(1)
        return self._place_CE[token_T1 % copies, experts_TK]


def marked(bins_TK: Tensor, bins: int) -> Tensor:
    """Whether a row names a bin, [T, bins] (bool)."""
    marks = torch.zeros((len(bins_TK), bins), dtype=torch.bool, device=bins_TK.device)
    return marks.scatter_(1, bins_TK.long(), True)


def plan_rows(
    group: dist.ProcessGroup,
    send_rows: list[int],
    receive_rows: list[int],
    goes_TR: Tensor,
    add: AddRows,
) -> RowPlan:
    """Each row once to each rank that it goes to. send_rows: how many are marked for each rank, so
    that the host need not wait to learn it. add: of a RowPlan."""
    row_S = torch.nonzero_static(goes_TR.t(), size=sum(send_rows))[:, 1]
    return RowPlan(group, tuple(send_rows), tuple(receive_rows), row_S, len(goes_TR), add)


def slots_here(place_NK: Tensor, places: range) -> Tensor:
    """Places as slots of the rank that has `places`, -1 for others (int64)."""
    slot_NK = place_NK.long() - places.start
    return slot_NK.masked_fill((slot_NK < 0) | (slot_NK >= len(places)), -1)

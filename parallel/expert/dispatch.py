"""Sending tokens to the ranks that hold their experts, and the results back.

A backend is a Dispatcher: `route` looks at the routing of one micro-batch and starts the exchange
of counts; the route's `dispatch` and `combine` are the two all-to-alls, on the tape. A route holds
all state of its micro-batch. Dropless, and a token goes at most once to each rank: its routing
weights travel with it and are applied there, so that `combine` is a plain sum.

Shapes: T tokens here, K experts per token, D model width, S rows sent, N rows received.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.expert.all_to_all import AllToAll
from parallel.expert.placement import ExpertPlacement
from parallel.expert.sum_rows import sum_rows
from parallel.tape.passes import Pass
from parallel.tape.tape import Tape


class Received(NamedTuple):
    """Tokens for the experts of this rank.

    x_ND: the tokens. weights_NK: their routing weights. experts_NK (int64): the chosen experts as
    numbered on this rank, -1 where a choice lies on another rank.
    """

    x_ND: Tensor
    weights_NK: Tensor
    experts_NK: Tensor


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

    def route(self, tape: Tape, experts_TK: Tensor) -> Route:
        """Start the exchange of counts for these choices (global expert numbers, int64)."""


class LocalDispatcher:
    """All experts are here, in order: nothing is exchanged."""

    def route(self, tape: Tape, experts_TK: Tensor) -> Route:
        return _LocalRoute(experts_TK)


@dataclass(frozen=True)
class _LocalRoute:
    experts_TK: Tensor

    def dispatch(
        self, tape: Tape, x_TD: Tensor, weights_TK: Tensor, across_TD: Tensor
    ) -> Pass[tuple[Received, Tensor]]:
        yield from ()
        return Received(x_TD, weights_TK, self.experts_TK), across_TD

    def combine(self, tape: Tape, y_ND: Tensor, across_TD: Tensor) -> Pass[Tensor]:
        yield from ()
        return across_TD + y_ND


class AllToAllDispatcher:
    """Exchange over torch.distributed's all_to_all_single (gloo, NCCL).

    A token goes to one copy of each of its experts; the copies of a redundant expert take turns, by
    the token's number.
    """

    def __init__(
        self, group: dist.ProcessGroup, placement: ExpertPlacement, device: torch.device
    ) -> None:
        """group: the expert-parallel ranks, in the order of `placement`."""
        self.group, self.ranks = group, placement.ranks
        self._homes_CE2 = torch.tensor(placement.homes_by_copy(), device=device)

    def route(self, tape: Tape, experts_TK: Tensor) -> Route:
        owner_TK, slot_TK = self._homes(experts_TK)
        goes_TR = torch.zeros(
            (len(experts_TK), self.ranks), dtype=torch.bool, device=experts_TK.device
        ).scatter_(1, owner_TK, True)
        sent_R = goes_TR.sum(0)
        one_each = (1,) * self.ranks
        counts = tape.exchange_counts("counts", AllToAll(self.group, one_each, one_each), sent_R)
        owner_S, token_S = goes_TR.t().nonzero(as_tuple=True)
        elsewhere_SK = owner_TK[token_S] != owner_S.unsqueeze(1)
        local_SK = slot_TK[token_S]
        return _AllToAllRoute(
            group=self.group,
            tokens=len(experts_TK),
            token_S=token_S,
            local_SK=local_SK.masked_fill(elsewhere_SK, -1),
            sent_R=sent_R,
            counts=counts,
        )

    def _homes(self, experts_TK: Tensor) -> tuple[Tensor, Tensor]:
        """The rank that each choice goes to, and the expert's slot there, [T, K] each."""
        if len(self._homes_CE2) == 1:
            owner_TK, slot_TK = self._homes_CE2[0][experts_TK].unbind(-1)
            return owner_TK, slot_TK
        token_T1 = torch.arange(len(experts_TK), device=experts_TK.device).unsqueeze(1)
        homes_TK2 = self._homes_CE2[token_T1 % len(self._homes_CE2), experts_TK]
        owner_TK, slot_TK = homes_TK2.unbind(-1)
        return owner_TK, slot_TK


@dataclass
class _AllToAllRoute:
    group: dist.ProcessGroup
    tokens: int
    token_S: Tensor
    local_SK: Tensor
    sent_R: Tensor
    counts: Callable[[], Tensor]
    _collective: AllToAll | None = None

    def dispatch(
        self, tape: Tape, x_TD: Tensor, weights_TK: Tensor, across_TD: Tensor
    ) -> Pass[tuple[Received, Tensor]]:
        packed = self.pack(x_TD, weights_TK)
        received_R = self.counts()
        self._collective = AllToAll(
            self.group, tuple(self.sent_R.tolist()), tuple(received_R.tolist())
        )
        exchange = tape.exchange("dispatch", self._collective, *packed, across=(across_TD,))
        del packed  # so that it dies when it has arrived
        x_ND, routing_N2K, across_TD = yield from exchange
        weights_NK, experts_NK = routing_N2K.chunk(2, dim=-1)
        return Received(x_ND, weights_NK, experts_NK.detach().long()), across_TD

    def combine(self, tape: Tape, y_ND: Tensor, across_TD: Tensor) -> Pass[Tensor]:
        if self._collective is None:
            raise ValueError("combine comes after dispatch")
        y_SD, across_TD = yield from tape.exchange(
            "combine", self._collective.reversed(), y_ND, across=(across_TD,)
        )
        return across_TD + sum_rows(y_SD, self.token_S, self.tokens)

    def pack(self, x_TD: Tensor, weights_TK: Tensor) -> tuple[Tensor, Tensor]:
        """Rows to send; their routing weights, then their expert numbers as floats of the same
        type (exact to 2^24 in float32). Weights of experts elsewhere go along and are not read."""
        weights_SK = weights_TK.index_select(0, self.token_S)
        routing_S2K = torch.cat([weights_SK, self.local_SK.to(weights_SK.dtype)], dim=-1)
        return x_TD.index_select(0, self.token_S), routing_S2K

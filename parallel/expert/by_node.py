"""Dispatch that crosses each boundary between nodes once per token, over plain all-to-alls.

A token for experts on another node goes to the rank there that has the sender's place in its node,
and from there once to each rank of that node with a chosen expert. Results come back the same way:
a node adds up its own before they cross (DeepSeek-V3, arXiv 2412.19437, section 3.2.2).

Both hops are one collective to the tape. On a GPU a stream of its own starts the second as soon as
the first has arrived. On the CPU the wait does: only the first hop is hidden there.

Shapes: T tokens here, K experts per token, A tokens after the first hop, N rows received; R ranks
in M nodes of G ranks, L slots of a rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.expert.all_to_all import InFlight
from parallel.expert.chained import Chained, start_chained
from parallel.expert.counts import CountExchange
from parallel.expert.dispatch import Places, Received, Route, marked, plan_rows, slots_here
from parallel.expert.placement import ExpertPlacement
from parallel.expert.router import count
from parallel.expert.rows import RowPlan, SendCopies, SumCopies
from parallel.expert.wire import Wire
from parallel.ops.groups import Groups
from parallel.ops.sum_rows import AddRows
from parallel.tape.passes import Pass
from parallel.tape.tape import Tape


@dataclass(frozen=True)
class NodeGroups:
    """The ranks that share the experts of a layer, in the order of their placement, nodes one after
    the other. counts: all. across: those with this rank's place in their nodes. within: those of
    this node."""

    counts: dist.ProcessGroup
    across: dist.ProcessGroup
    within: dist.ProcessGroup


class NodeDispatcher:
    """See the module. A token chooses copies of redundant experts as in AllToAllDispatcher."""

    def __init__(
        self, groups: NodeGroups, placement: ExpertPlacement, device: torch.device, wire: Wire
    ) -> None:
        self.groups, self.slots, self.wire = groups, placement.slots, wire
        self._places = Places(placement, device)
        self._counts = CountExchange(groups.counts, device)
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None

    def route(self, tape: Tape, experts_TK: Tensor) -> Pass[Route]:
        nodes, ranks, slots = self.groups.across.size(), self.groups.within.size(), self.slots
        place_TK = self._places.of(experts_TK)
        goes_TM = marked(place_TK // (slots * ranks), nodes)
        goes_TR = marked(place_TK // slots, nodes * ranks)
        pairs_MGL = count(place_TK.flatten(), nodes * ranks * slots).view(nodes, ranks, slots)
        # To each rank: tokens to its node, tokens to each rank of its node, pairs of its slots.
        to_node_MG1 = goes_TM.sum(0).view(nodes, 1, 1).expand(nodes, ranks, 1)
        to_ranks_MGG = goes_TR.sum(0).view(nodes, 1, ranks).expand(nodes, ranks, ranks)
        table = torch.cat([to_node_MG1, to_ranks_MGG, pairs_MGL], dim=2).flatten(0, 1)
        counts = yield from tape.exchange_counts("counts", self._counts, table)
        return _NodeRoute(self.groups, self.wire, slots, place_TK, goes_TM, counts, self._stream)


@dataclass
class _NodeRoute:
    groups: NodeGroups
    wire: Wire
    slots: int
    place_TK: Tensor
    goes_TM: Tensor
    counts: Callable[[], tuple[Tensor, ...]]
    stream: torch.cuda.Stream | None
    _hops: _Hops | None = None

    def dispatch(
        self, tape: Tape, x_TD: Tensor, weights_TK: Tensor, across_TD: Tensor
    ) -> Pass[tuple[Received, Tensor]]:
        on_host, received = self.counts()
        node, here = self.groups.across.rank(), self.groups.within.rank()
        nodes, ranks = self.groups.across.size(), self.groups.within.size()
        sent_MGC, received_MGC = on_host.unflatten(1, (nodes, ranks))
        groups = Groups.of(
            received[:, 1 + ranks :].sum(0), received_MGC[:, :, 1 + ranks :].sum((0, 1)).tolist()
        )
        first = plan_rows(
            self.groups.across, sent_MGC[:, 0, 0].tolist(), received_MGC[:, here, 0].tolist(),
            self.goes_TM, self.wire.add_rows,
        )  # fmt: skip
        of_node = range(node * ranks * self.slots, (node + 1) * ranks * self.slots)
        self._hops = _Hops(
            first,
            _SecondHop(
                self.groups.within, of_node, self.slots,
                received_MGC[:, here, 1 : 1 + ranks].sum(0).tolist(),
                received_MGC[:, :, 1 + here].sum(0).tolist(), self.wire.add_rows,
            ),
            self.stream,
        )  # fmt: skip
        there = self.wire.tokens(_SendByNode(self._hops))
        *arrived, across_TD = yield from tape.exchange(
            "dispatch", there, x_TD, weights_TK, self.place_TK, across=(across_TD,)
        )
        x, weights_NK, place_NK = self.wire.read(arrived)
        start = of_node.start + here * self.slots
        slot_NK = slots_here(place_NK, range(start, start + self.slots))
        return Received(x, weights_NK, slot_NK, groups), across_TD

    def combine(self, tape: Tape, y_ND: Tensor, across_TD: Tensor) -> Pass[Tensor]:
        if self._hops is None:
            raise ValueError("combine comes after dispatch")
        y_TD, across_TD = yield from tape.exchange(
            "combine", self.wire.results(_SumByNode(self._hops)), y_ND, across=(across_TD,), turns=2
        )
        return across_TD + y_TD


@dataclass(frozen=True)
class _SecondHop:
    """What is known of it before the first has arrived. places: of this node."""

    group: dist.ProcessGroup
    places: range
    slots: int
    send_rows: list[int]
    receive_rows: list[int]
    add: AddRows

    def plan(self, place_AK: Tensor) -> RowPlan:
        """For the tokens that have arrived, by the places that they are for."""
        ranks = len(self.send_rows)
        in_node_AK = slots_here(place_AK, self.places)
        rank_AK = torch.where(in_node_AK < 0, ranks, in_node_AK // self.slots)
        goes_AG = marked(rank_AK, ranks + 1)[:, :ranks]
        return plan_rows(self.group, self.send_rows, self.receive_rows, goes_AG, self.add)


@dataclass
class _Hops:
    """The two of one micro-batch in one layer. stream: of a GPU, for what comes between them."""

    across: RowPlan
    second: _SecondHop
    stream: torch.cuda.Stream | None
    _within: RowPlan | None = None

    def within(self, *arrived: Tensor) -> RowPlan:
        """arrived: of a dispatch, of which the places come last; later it is known."""
        if self._within is None:
            self._within = self.second.plan(arrived[-1])
        return self._within


@dataclass(frozen=True)
class _SendByNode:
    hops: _Hops

    @property
    def copies(self) -> bool:
        return True

    def start(self, *tensors: Tensor) -> Chained:
        """tensors: [T, width] each."""
        hops = self.hops

        def go_on(*arrived: Tensor) -> InFlight:
            return SendCopies(hops.within(*arrived)).start(*arrived)

        return start_chained(SendCopies(hops.across).start(*tensors), go_on, hops.stream)

    def reversed(self) -> _SumByNode:
        return _SumByNode(self.hops)


@dataclass(frozen=True)
class _SumByNode:
    hops: _Hops

    @property
    def copies(self) -> bool:
        return False

    def start(self, *tensors: Tensor) -> Chained:
        """tensors: [N, width] each."""
        hops = self.hops
        first = SumCopies(hops.within()).start(*tensors)
        return start_chained(first, SumCopies(hops.across).start, hops.stream)

    def reversed(self) -> _SendByNode:
        return _SendByNode(self.hops)

"""Grouped products, and the exchange of tokens between the ranks that hold the experts."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.expert.by_node import NodeDispatcher
from parallel.expert.deepep import DeepEPDispatcher, DeepEPError, open_carrier
from parallel.expert.deepep_carrier import Carrier, Largest
from parallel.expert.deepep_v1 import DeepEPV1
from parallel.expert.deepep_v2 import DeepEPV2
from parallel.expert.dispatch import AllToAllDispatcher, Dispatcher, ExpertGroups, LocalDispatcher
from parallel.expert.experts import GroupedExperts
from parallel.expert.placement import ExpertPlacement, PlacementError
from parallel.expert.wire import Fp8Wire, PlainWire, Wire
from parallel.ops.grouped import GroupedProduct, add_grouped_product, grouped_linear
from parallel.ops.groups import Groups
from parallel.ops.ops import Ops
from parallel.ops.precision import PRECISIONS
from parallel.ranks.process import Process
from parallel.tape.passes import Pass, run
from parallel.tape.tape import Tape
from parallel.tape.weight_gradients import WeightGradients, WeightTiming
from tests.distributed import run_world
from tests.fake_deep_ep import FakeBuffer, FakeElasticBuffer
from tests.test_by_node import node_groups

EXPERTS, TOP_K, WIDTH, INNER = 8, 3, 10, 5
NODE = 2  # ranks that are called one


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("widths", [(16, 32), (5, 7)], ids=["aligned", "unaligned"])
@pytest.mark.parametrize(
    "rows",
    [(3, 1, 4, 2), (0, 5, 0, 0), (0, 0, 0, 0), (9, 0, 3, 1), (0, 0, 2, 6)],
    ids=lambda rows: "-".join(map(str, rows)),
)
def test_grouped_products_are_those_of_a_loop(
    rows: tuple[int, ...], widths: tuple[int, int], dtype: torch.dtype
) -> None:
    """Guards output, input gradient, and a weight gradient that adds to what is there."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x, weight = draw(sum(rows), widths[0]), draw(len(rows), widths[1], widths[0])
    grad, before = draw(sum(rows), widths[1]), draw(*weight.shape)
    ends = torch.tensor(rows).cumsum(0).to(torch.int32)
    y_loop, x_grad_loop, weight_grad_loop = [], [], before.clone()
    for expert, (piece, piece_grad) in enumerate(zip(x.split(rows), grad.split(rows))):
        y_loop.append(piece @ weight[expert].T)
        x_grad_loop.append(piece_grad @ weight[expert])
        weight_grad_loop[expert] += piece_grad.T @ piece

    x, weight = (t.to(dtype).requires_grad_() for t in (x, weight))
    weight.grad = before.to(dtype)
    queue = WeightGradients()
    y = grouped_linear(
        x, GroupedProduct(weight, Groups(ends, sum(rows)), queue, add_grouped_product)
    )
    y.backward(grad.to(dtype))
    queue.drain()
    tolerance = {"rtol": 0, "atol": 1e-4 if dtype == torch.float32 else 1e-12}
    torch.testing.assert_close(y.double(), torch.cat(y_loop), **tolerance)
    torch.testing.assert_close(x.grad.double(), torch.cat(x_grad_loop), **tolerance)
    torch.testing.assert_close(weight.grad.double(), weight_grad_loop, **tolerance)


def _routing(scene: str, rank: int, world: int) -> tuple[Tensor, Tensor]:
    """This rank's experts [T, K] and its routing weights. An expert may come twice in a row here:
    its two weights then add up, on one rank as on many."""
    generator = torch.Generator().manual_seed(10 + rank)
    here = EXPERTS // world
    tokens = 0 if scene == "rank 1 has no tokens" and rank == 1 else 7 + rank
    experts = torch.stack(
        [torch.randperm(EXPERTS, generator=generator)[:TOP_K] for _ in range(tokens)]
        or [torch.zeros(TOP_K, dtype=torch.int64)]
    )[:tokens]
    if scene == "all to rank 1":
        experts = here + experts % here
    if scene == "none to the last rank":
        experts = experts % (EXPERTS - here)
    weights = torch.rand(tokens, TOP_K, dtype=torch.float64, generator=generator)
    return experts, weights


SCENES = ("random", "all to rank 1", "none to the last rank", "rank 1 has no tokens")


def _moe(
    dispatcher: Dispatcher, held: tuple[int, ...], rank: int, world: int, scene: str,
    recompute: bool,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Dispatch, the experts `held` and combine: results and all gradients."""
    generator = torch.Generator().manual_seed(0)
    ops = Ops(PRECISIONS["float64"])
    experts = GroupedExperts(ops, held, WIDTH, INNER, recompute)
    for parameter, shape in (
        (experts.gate_up_proj, (EXPERTS, 2 * INNER, WIDTH)),
        (experts.down_proj, (EXPERTS, WIDTH, INNER)),
    ):
        whole = 0.5 * torch.randn(*shape, dtype=torch.float64, generator=generator)
        parameter.data.copy_(whole[list(held)])
        parameter.grad = torch.zeros_like(parameter)
    choices, weights = _routing(scene, rank, world)
    generator.manual_seed(20 + rank)
    x = torch.randn(len(choices), WIDTH, dtype=torch.float64, generator=generator)
    tape = Tape(deferred=ops.deferred)
    weights.requires_grad_()

    def forward(x: Tensor) -> Pass[Tensor]:
        route = yield from dispatcher.route(tape, choices)
        received, sum_TD = yield from route.dispatch(tape, x, weights, 2 * x)
        return (yield from route.combine(tape, experts(*received.parts()), sum_TD))

    y = tape.end(run(forward(tape.begin(x))))
    x.grad = run(tape.backward(WeightTiming.WHILE_IN_FLIGHT, torch.cos(y)))
    tape.drain_weight_gradients()
    named = {
        "y": y, "x": x.grad, "weights": weights.grad,
        "gate_up": experts.gate_up_proj.grad, "down": experts.down_proj.grad,
    }  # fmt: skip
    return {name: tensor.detach().numpy() for name, tensor in named.items()}


def _placements(world: int) -> dict[str, ExpertPlacement]:
    """Tables of the same experts: in order, dealt out, and with the next rank's first one too."""
    in_order = ExpertPlacement.contiguous(EXPERTS, world)
    dealt_out = tuple(tuple(range(rank, EXPERTS, world)) for rank in range(world))
    held = in_order.held
    twice = tuple((*slots, held[(rank + 1) % world][0]) for rank, slots in enumerate(held))
    return {
        "in order": in_order,
        "dealt out": ExpertPlacement(dealt_out),
        "some twice": ExpertPlacement(twice),
    }


def _cases(world: int) -> list[tuple[str, str, bool, Wire]]:
    """(placement, scene, recompute, wire) of each case."""
    scenes = itertools.product(_placements(world), SCENES)
    ways = (False, PlainWire()), (True, PlainWire()), (True, Fp8Wire())
    return [(*scene, *way) for scene, way in itertools.product(scenes, ways)]


def _dispatch(process: Process, way: str) -> list[tuple[dict[str, np.ndarray], list[list[int]]]]:
    """Results of every case, and rows sent in each all-to-all of x."""
    rank, world = process.rank, process.world
    exchange, sent = dist.all_to_all_single, []

    def spy(
        into: Tensor, tensor: Tensor, receive: Any = (), send: Any = (), *rest: Any, **more: Any
    ):  # type: ignore[no-untyped-def]
        if send:
            assert len(tensor) == sum(send) and len(into) == sum(receive)
            sent.append(list(send))
        return exchange(into, tensor, receive, send, *rest, **more)

    dist.all_to_all_single = spy
    world_group, cpu, results = dist.group.WORLD, torch.device("cpu"), []
    nodes = node_groups(rank, world, NODE) if way == "by node" else None
    first, second = (kind(torch.float64, torch.float64) for kind in (FakeBuffer, FakeElasticBuffer))
    carriers: dict[str, tuple[Carrier, list[list[int]]]] = {
        "deepep": (DeepEPV1(first), first.sent), "deepep v2": (DeepEPV2(second), second.sent),
    }  # fmt: skip
    for name, scene, recompute, wire in _cases(world):
        placement = _placements(world)[name]
        if way in carriers:
            dispatcher: Dispatcher = DeepEPDispatcher(carriers[way][0], placement, cpu, wire)
        elif nodes is None:
            groups = ExpertGroups(world_group, world_group)
            dispatcher = AllToAllDispatcher(groups, placement, cpu, wire)
        else:
            dispatcher = NodeDispatcher(nodes, placement, cpu, wire)
        sent.clear()
        first.sent.clear()
        second.sent.clear()
        result = _moe(dispatcher, placement.held[rank], rank, world, scene, recompute)
        results.append((result, list(carriers[way][1] if way in carriers else sent)))
    return results


@pytest.mark.parametrize(
    ("world", "way"),
    [
        (2, "all to all"),
        (4, "all to all"),
        (4, "by node"),
        (2, "deepep"),
        (4, "deepep"),
        (4, "deepep v2"),
    ],
)
def test_dispatch_sends_a_token_once_and_gives_what_one_rank_gives(world: int, way: str) -> None:
    """Guards the wire and the mathematics under every table of placement, with ranks that send
    nothing, receive nothing, or receive everything. Once to each rank; or first to each node."""
    by_rank = run_world(world, _dispatch, way)
    bin_size = NODE if way == "by node" else 1
    alone = tuple(range(EXPERTS))
    for case, (name, scene, recompute, wire) in enumerate(_cases(world)):
        where, placement = f"{name}, {scene}, {recompute}, {wire}", _placements(world)[name]
        expected = [
            _moe(LocalDispatcher(EXPERTS, wire), alone, rank, world, scene, recompute)
            for rank in range(world)
        ]
        for rank in range(world):
            result, sent = by_rank[rank][case]
            pairs = {(t, r // bin_size) for t, r in _pairs(scene, rank, world, placement)}
            bins = range(world // bin_size)
            assert sent[0] == [sum(r == other for _, r in pairs) for other in bins], where
            for value in ("y", "x", "weights"):
                np.testing.assert_allclose(
                    result[value], expected[rank][value], rtol=1e-10, atol=1e-10,
                    err_msg=f"{where}: {value} on rank {rank}",
                )  # fmt: skip
        for value in ("gate_up", "down"):
            whole = sum(e[value] for e in expected)
            summed = np.zeros_like(whole)  # over the copies of each expert
            for rank in range(world):
                np.add.at(summed, list(placement.held[rank]), by_rank[rank][case][0][value])
            np.testing.assert_allclose(
                summed, whole, rtol=1e-10, atol=1e-10, err_msg=f"{where}: {value}"
            )


def test_without_deepep_one_line_says_what_to_set() -> None:
    with pytest.raises(DeepEPError, match=r"cannot be imported.*mesh\.dispatch to hierarchical"):
        open_carrier(None, Largest(8, 16, 2, False, 20), torch.device("cuda"))  # type: ignore[arg-type]
    with pytest.raises(DeepEPError, match="needs GPUs"):
        open_carrier(None, Largest(8, 16, 2, False, 20), torch.device("cpu"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (((0, 1), (2,)), "equally many"),
        (((0, 1), (1, 3)), r"\[2\]"),
        (((0, -1), (1, 2)), "no rank"),
    ],
)
def test_a_table_places_every_expert_and_as_many_on_each_rank(
    held: tuple[tuple[int, ...], ...], words: str
) -> None:
    with pytest.raises(PlacementError, match=words):
        ExpertPlacement(held)


def _pairs(scene: str, rank: int, world: int, placement: ExpertPlacement) -> set[tuple[int, int]]:
    """The different (token, destination rank) of what `rank` sends."""
    experts, _ = _routing(scene, rank, world)
    copies = placement.places_by_copy()
    return {
        (token, copies[token % len(copies)][expert] // placement.slots)
        for token, row in enumerate(experts.tolist())
        for expert in row
    }

"""Grouped products, and the exchange of tokens between the ranks that hold the experts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.expert.dispatch import AllToAllDispatcher, Dispatcher, LocalDispatcher
from parallel.expert.experts import GroupedExperts
from parallel.ops.grouped import grouped_linear
from parallel.ranks.process import Process
from parallel.tape.passes import Pass, run
from parallel.tape.tape import Tape, WeightTiming
from parallel.tape.weight_gradients import WeightGradients
from tests.distributed import run_world

EXPERTS, TOP_K, WIDTH, INNER = 8, 3, 10, 5


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
    y = grouped_linear(x, weight, ends, queue)
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
    dispatcher: Dispatcher, first: int, count: int, rank: int, world: int, scene: str,
    recompute: bool,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Dispatch, experts `first` to `first + count` and combine: results and all gradients."""
    generator = torch.Generator().manual_seed(0)
    experts = GroupedExperts(count, WIDTH, INNER, recompute).double()
    for parameter, shape in (
        (experts.gate_up_proj, (EXPERTS, 2 * INNER, WIDTH)),
        (experts.down_proj, (EXPERTS, WIDTH, INNER)),
    ):
        whole = 0.5 * torch.randn(*shape, dtype=torch.float64, generator=generator)
        parameter.data.copy_(whole[first : first + count])
        parameter.grad = torch.zeros_like(parameter)
    choices, weights = _routing(scene, rank, world)
    generator.manual_seed(20 + rank)
    x = torch.randn(len(choices), WIDTH, dtype=torch.float64, generator=generator)
    tape = Tape()
    x, weights = x.requires_grad_(), weights.requires_grad_()

    def forward() -> Pass[Tensor]:
        plan = dispatcher.plan(tape, choices)
        received = yield from plan.dispatch(tape, x, weights)
        return (yield from plan.combine(tape, experts(tape, received)))

    y = run(forward())
    tape.release()
    y.grad = torch.cos(y.detach())
    run(tape.backward(WeightTiming.BEHIND))
    tape.drain_weight_gradients()
    named = {
        "y": y, "x": x.grad, "weights": weights.grad,
        "gate_up": experts.gate_up_proj.grad, "down": experts.down_proj.grad,
    }  # fmt: skip
    return {name: tensor.detach().numpy() for name, tensor in named.items()}


def _dispatch(process: Process) -> list[tuple[dict[str, np.ndarray], list[list[int]]]]:
    """Every scene, with and without recompute: results, and rows sent in each all-to-all of x."""
    rank, world = process.rank, process.world
    here = EXPERTS // world
    dispatcher = AllToAllDispatcher(dist.group.WORLD, here)
    exchange, sent = dist.all_to_all_single, []

    def spy(into: Tensor, tensor: Tensor, receive: list, send: list, *rest: Any, **more: Any):  # type: ignore[no-untyped-def]
        assert len(tensor) == sum(send) and len(into) == sum(receive)
        if tensor.shape[1:] == (WIDTH,):
            sent.append(list(send))
        return exchange(into, tensor, receive, send, *rest, **more)

    dist.all_to_all_single = spy
    results = []
    for scene in SCENES:
        for recompute in (False, True):
            sent.clear()
            result = _moe(dispatcher, rank * here, here, rank, world, scene, recompute)
            results.append((result, list(sent)))
    return results


@pytest.mark.parametrize("world", [2, 4])
def test_dispatch_sends_a_token_once_to_a_rank_and_gives_what_one_rank_gives(world: int) -> None:
    """Guards the wire and the mathematics, with ranks that send nothing, receive nothing, or
    receive everything."""
    by_rank = run_world(world, _dispatch)
    cases = [(scene, recompute) for scene in SCENES for recompute in (False, True)]
    for case, (scene, recompute) in enumerate(cases):
        where = f"{scene}, recompute {recompute}"
        expected = [
            _moe(LocalDispatcher(), 0, EXPERTS, rank, world, scene, recompute)
            for rank in range(world)
        ]
        for rank in range(world):
            result, sent = by_rank[rank][case]
            pairs = _pairs(scene, rank, world)
            assert sum(sent[0]) == len(pairs), where
            assert sent[0] == [sum(r == other for _, r in pairs) for other in range(world)], where
            for name in ("y", "x", "weights"):
                np.testing.assert_allclose(
                    result[name], expected[rank][name], rtol=1e-10, atol=1e-10,
                    err_msg=f"{where}: {name} on rank {rank}",
                )  # fmt: skip
        for name in ("gate_up", "down"):
            np.testing.assert_allclose(
                np.concatenate([by_rank[rank][case][0][name] for rank in range(world)]),
                sum(e[name] for e in expected), rtol=1e-10, atol=1e-10, err_msg=f"{where}: {name}",
            )  # fmt: skip


def _pairs(scene: str, rank: int, world: int) -> set[tuple[int, int]]:
    """The different (token, destination rank) of what `rank` sends."""
    experts, _ = _routing(scene, rank, world)
    return {
        (token, expert // (EXPERTS // world))
        for token, row in enumerate(experts.tolist())
        for expert in row
    }

"""Dispatch by node: what crosses between nodes is what the plan says."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.expert.by_node import NodeDispatcher, NodeGroups
from parallel.expert.placement import ExpertPlacement
from parallel.expert.wire import Fp8Wire, PlainWire
from parallel.ops.fp8.rounded import Rounded, read
from parallel.ranks.process import Process
from parallel.tape.passes import Pass, run
from parallel.tape.tape import Tape
from parallel.tape.weight_gradients import WeightTiming
from tests.distributed import run_world
from trainer.config.derived import mesh_of
from trainer.config.schema import (
    ClusterConfig,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    PipelineConfig,
    PlanConfig,
)
from trainer.plan.datasheets import machine_of
from trainer.plan.traffic import exchange_bytes

RANKS, PER_NODE = 4, 2
MOE = MoEConfig(experts=8, groups=4, top_groups=3, top_k=4)
EACH = MOE.experts // MOE.groups


def every_choice() -> Tensor:
    """A token for each way to choose groups and experts in them: so what the plan counts as the
    mean over choices is the mean over these tokens."""
    return torch.tensor([
        chosen
        for groups in itertools.combinations(range(MOE.groups), MOE.top_groups)
        for chosen in itertools.combinations(
            [EACH * group + i for group in groups for i in range(EACH)], MOE.top_k
        )
    ])  # fmt: skip


CHOICES = every_choice()
CONFIG = Config(
    mesh=MeshConfig(expert=RANKS),
    pipeline=PipelineConfig("1f1b", micro_batches=1),
    model=ModelConfig(dim=512, moe=MOE),
    data=DataConfig(sequence_length=len(CHOICES), global_batch=RANKS),
    cluster=ClusterConfig(gpus_per_node=PER_NODE),
    plan=PlanConfig(dispatch="deepep"),
)


def node_groups(rank: int, ranks: int, per_node: int) -> NodeGroups:
    """Of nodes that are only called so."""
    nodes = [list(range(first, first + per_node)) for first in range(0, ranks, per_node)]
    sets = [*nodes, *map(list, zip(*nodes))]
    within, across = (g for g, ranks in zip(map(dist.new_group, sets), sets) if rank in ranks)
    return NodeGroups(dist.group.WORLD, across, within)


def bytes_sent(process: Process, config: Config) -> dict[str, tuple[int, int]]:
    """Of each exchange, both ways: bytes to other nodes, and to the other rank of this node."""
    groups = node_groups(process.rank, RANKS, PER_NODE)
    exchange, sent = dist.all_to_all_single, []

    def spy(into: Tensor, tensor: Tensor, *rest: Any, group: Any = None, **more: Any) -> Any:
        if rest:  # of rows
            receive, send, group = rest
            row = tensor[0].numel() * tensor.element_size()
            away = sum(rows for peer, rows in enumerate(send) if peer != group.rank())
            sent.append((group is groups.across, row * away))
            rest = receive, send
        return exchange(into, tensor, *rest, group=group, **more)

    dist.all_to_all_single = spy
    placement = ExpertPlacement.contiguous(MOE.experts, RANKS)
    wire = Fp8Wire() if config.mesh.dispatch_dtype == "fp8" else PlainWire()
    dispatcher = NodeDispatcher(groups, placement, torch.device("cpu"), wire)
    x_TD = torch.randn(len(CHOICES), config.model.dim).bfloat16()
    weights_TK = torch.ones(CHOICES.shape, requires_grad=True)
    tape = Tape()

    def forward(x_TD: Tensor) -> Pass[Tensor]:
        route = yield from dispatcher.route(tape, CHOICES)
        received, x_TD = yield from route.dispatch(tape, x_TD, weights_TK, x_TD)
        x_ND = read(received.x) if isinstance(received.x, Rounded) else received.x
        weight_N1 = received.weights_NK.sum(1, keepdim=True).bfloat16()
        return (yield from route.combine(tape, x_ND * weight_N1, x_TD))

    y_TD = tape.end(run(forward(tape.begin(x_TD))))
    run(tape.backward(WeightTiming.WHILE_IN_FLIGHT, torch.ones_like(y_TD)))
    there, on, back_on, back, out, out_on, *last = sent
    in_node, between = last[:2], last[2:]  # gradients of x and of routing weights
    ways = {
        "dispatch": ([there], [on]), "combine": ([back], [back_on]),
        "combine_back": ([out], [out_on]), "dispatch_back": (between, in_node),
    }  # fmt: skip
    for across, within in ways.values():
        assert all(crosses for crosses, _ in across) and not any(c for c, _ in within)
    return {
        name: (sum(size for _, size in across), sum(size for _, size in within))
        for name, (across, within) in ways.items()
    }


@pytest.mark.parametrize("dtype", ["same", "fp8"])
def test_bytes_between_nodes_are_those_of_the_plan(dtype: Literal["same", "fp8"]) -> None:
    config = replace(CONFIG, mesh=replace(CONFIG.mesh, dispatch_dtype=dtype))
    by_rank = run_world(RANKS, bytes_sent, config)
    plan = exchange_bytes(config, mesh_of(config), machine_of(config.cluster))
    for name in plan:
        network, nvlink = (sum(each[name][i] for each in by_rank) / RANKS for i in range(2))
        assert network == pytest.approx(plan[name].network, rel=1e-12)
        assert nvlink == pytest.approx(plan[name].nvlink, rel=1e-12)

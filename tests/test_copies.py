"""Who holds which parameter, and what that makes of the gradients and their norm."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from parallel.ranks.groups import GroupSpec, open_groups
from parallel.ranks.mesh import Coordinate, Mesh, RankSet
from parallel.ranks.process import Process
from parallel.reduce.copies import Home, all_copies, copies
from parallel.reduce.gradients import Gradients, make_gradients
from parallel.schedule.generators import generate
from tests.distributed import run_world
from trainer.model.partition import partition_layers

MESH = Mesh(pipeline=2, expert_data=2, expert=2)
#            pipeline rank 0: 0 1 | 2 3      pipeline rank 1: 4 5 | 6 7   (expert ranks 0 1 | 0 1)


def test_mesh_numbers_the_expert_rank_fastest_and_the_pipeline_rank_slowest() -> None:
    assert (MESH.world, MESH.data) == (8, 4)
    assert MESH.coordinate(6) == Coordinate(pipeline=1, expert_data=1, expert=0)
    assert [MESH.rank(MESH.coordinate(rank)) for rank in range(8)] == list(range(8))
    assert MESH.pipeline_group(6) == (2, 6)
    assert [MESH.expert_group(rank) for rank in (0, 3, 6)] == [(0, 1), (2, 3), (6, 7)]
    assert [MESH.data_rank(rank) for rank in range(8)] == [0, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("schedule", "name", "expected"),
    [
        # One flow, a stage on one pipeline rank: data replicas only.
        ("1f1b", "layers.0.self_attn.o_proj.weight", (0, 1, 2, 3)),
        ("1f1b", "layers.3.mlp.experts.down_proj", (5, 7)),
        ("1f1b", "layers.3.mlp.gate.weight", (4, 5, 6, 7)),
        ("1f1b", "norm.weight", (4, 5, 6, 7)),
        # Two flows: the mirror rank has the same stages.
        ("dualpipe", "layers.0.self_attn.o_proj.weight", tuple(range(8))),
        ("dualpipe", "layers.3.mlp.experts.down_proj", (1, 3, 5, 7)),
        ("dualpipe", "lm_head.weight", tuple(range(8))),
        # A V: stages 0 and 3 on rank 0, stages 1 and 2 on rank 1.
        ("dualpipev", "layers.3.mlp.experts.down_proj", (1, 3)),
        ("dualpipev", "layers.1.mlp.experts.down_proj", (5, 7)),
        ("dualpipev", "lm_head.weight", (0, 1, 2, 3)),
        # The MTP module after layer 3 lives in the last stage.
        ("1f1b", "layers.4.mlp.experts.gate_up_proj", (5, 7)),
        ("1f1b", "layers.4.eh_proj.weight", (4, 5, 6, 7)),
        ("dualpipev", "layers.4.eh_proj.weight", (0, 1, 2, 3)),
    ],
)
def test_copies_by_hand(schedule: str, name: str, expected: RankSet) -> None:
    """Four layers and one MTP module on two pipeline ranks; experts as expert rank 1 holds them."""
    table = generate(schedule, 2, 4)
    parts = partition_layers(4, table.stages, mtp_depth=1)
    assert copies(parts.home(name), MESH, table.placement, expert_rank=1) == expected
    assert expected in all_copies(parts.homes(), MESH, table.placement)


@pytest.mark.parametrize(
    ("schedule", "mtp_depth", "pipeline_ranks"),
    [
        ("1f1b", 0, {0}),
        ("1f1b", 1, {0, 3}),
        ("dualpipe", 0, {0, 3}),
        ("dualpipe", 1, {0, 3}),
        ("dualpipev", 0, {0}),
        ("dualpipev", 1, {0}),
    ],
)
def test_the_embedding_is_also_where_mtp_reads_it(
    schedule: str, mtp_depth: int, pipeline_ranks: set[int]
) -> None:
    mesh = Mesh(pipeline=4, expert=2)
    table = generate(schedule, 4, 8)
    home = partition_layers(8, table.stages, mtp_depth).home("embed_tokens.weight")
    ranks = copies(home, mesh, table.placement, expert_rank=0)
    assert {mesh.coordinate(rank).pipeline for rank in ranks} == pipeline_ranks
    assert len(ranks) == 2 * len(pipeline_ranks)


def test_dualpipe_mirrors_p_with_ranks_less_1_less_p() -> None:
    mesh, table = Mesh(pipeline=4), generate("dualpipe", 4, 8)
    found = [copies(Home(frozenset({s})), mesh, table.placement, 0) for s in range(4)]
    assert found == [(0, 3), (1, 2), (1, 2), (0, 3)]


def _gradients(values: dict[str, list[float]]) -> tuple[Gradients, dict[str, nn.Parameter]]:
    parameters = {name: nn.Parameter(torch.zeros(len(v))) for name, v in values.items()}
    gradients = make_gradients(parameters, dict.fromkeys(parameters, (0,)), {}, rank=0)
    for name, value in values.items():
        parameters[name].grad.add_(torch.tensor(value))
    return gradients, parameters


def test_clip_scales_to_the_limit_and_only_down() -> None:
    gradients, parameters = _gradients({"a": [2.0, 3.0], "b": [6.0]})
    norm = gradients.square().sqrt()
    assert float(norm) == 7
    gradients.clip(norm, 0)
    gradients.clip(norm, 8.0)
    assert parameters["a"].grad.tolist() == [2, 3]
    gradients.clip(norm, 3.5)
    assert parameters["a"].grad.tolist() == pytest.approx([1, 1.5])
    assert parameters["b"].grad.tolist() == pytest.approx([3])
    gradients.zero()
    assert not parameters["a"].grad.any() and not parameters["b"].grad.any()


def _reduce_and_clip(process: Process) -> tuple[float, dict[str, list[float]]]:
    """One parameter on both ranks, and one of each rank's own under one name, as experts have."""
    rank = process.rank
    copies_of = {"shared": (0, 1), "expert": (rank,), "late": (0, 1)}
    parameters = {name: nn.Parameter(torch.zeros(2)) for name in copies_of}
    specs = [GroupSpec(ranks, "gradients", "all-reduce") for ranks in ((0, 1), (0,), (1,))]
    opened = open_groups(specs, rank, timedelta(seconds=30), torch.device("cpu"))
    assert set(opened) == {specs[0]}
    gradients = make_gradients(parameters, copies_of, {(0, 1): opened[specs[0]]}, rank)
    for _ in range(2):  # a second step starts from zero
        gradients.zero()
        parameters["shared"].grad += torch.tensor([1.0, 3.0]) if rank == 0 else 0.0
        parameters["late"].grad += 1.0
        parameters["expert"].grad += torch.tensor([3.0, 4.0]) if rank == 0 else 5.0
        gradients.reduce()
    square = gradients.square()
    dist.all_reduce(square)
    norm = square.sqrt()
    gradients.clip(norm, float(norm) / 2)
    return float(norm), {name: p.grad.tolist() for name, p in parameters.items()}


def test_gradients_are_summed_over_copies_and_counted_once_in_the_norm() -> None:
    results: list[Any] = run_world(2, _reduce_and_clip)
    # shared (1, 3), late (2, 2), experts (3, 4) and (5, 5): 10 + 8 + 25 + 50.
    assert [norm for norm, _ in results] == pytest.approx([93**0.5] * 2)
    for rank, (_, halves) in enumerate(results):
        assert halves["shared"] == pytest.approx([0.5, 1.5])
        assert halves["late"] == pytest.approx([1, 1])
        assert halves["expert"] == pytest.approx([[1.5, 2], [2.5, 2.5]][rank])

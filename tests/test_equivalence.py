"""The contract: any layout gives the numbers of one process, in float64 to rounding."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from parallel.ranks.process import Process
from parallel.schedule.generators.placements import v_placement
from parallel.schedule.table_file import write_table
from parallel.study.costs import CostModel
from parallel.study.search import search
from tests.distributed import run_world
from trainer.build.layout import build
from trainer.config.schema import (
    AttentionConfig,
    ClusterConfig,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    MTPConfig,
    OptimizerConfig,
    PipelineConfig,
    PrecisionConfig,
    RecomputeConfig,
    RunConfig,
)
from trainer.config.validate import validate
from trainer.data.document_numbers import document_numbers
from trainer.model.names import named_biases, named_tensors
from trainer.objective.pretraining import DOCUMENTS, TOKENS
from trainer.recipe.progress import Progress
from trainer.run.step import Trainer

TOLERANCE = 1e-10
STEPS = 2
SCHEDULES = ("1f1b", "gpipe", "dualpipe", "dualpipev")
MORE_SCHEDULES = ("interleaved", "zb-h1", "zb-h2", "zbv")
LAYOUTS = [
    (1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1), (2, 1, 2), (1, 2, 2), (4, 1, 1), (2, 2, 2),
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One way to run the same two steps. mesh: (pipeline, expert, expert_data). micro_batches: per
    data rank, two for each pipeline rank where not given. by_node: dispatch over nodes of two.
    apart: documents. context: ranks that share sequences, of `length` tokens."""

    schedule: str
    mesh: tuple[int, int, int]
    mtp: int
    recompute: bool
    overlap: bool
    layers: int = 4
    schedule_file: str | None = None
    linear: Literal["same", "fp8"] = "same"
    micro_batches: int | None = None
    by_node: bool = False
    dispatch_dtype: Literal["same", "fp8"] = "same"
    apart: bool = False
    context: int = 1
    length: int = 6

    def config(self) -> Config:
        pipeline, expert, expert_data = self.mesh
        return Config(
            run=RunConfig(steps=STEPS, seed=1),
            precision=PrecisionConfig("float64", self.linear),
            mesh=MeshConfig(
                pipeline, expert, expert_data,
                self.context, "hierarchical" if self.by_node else "all_to_all", self.dispatch_dtype,
            ),
            cluster=ClusterConfig(gpus_per_node=2),
            pipeline=PipelineConfig(
                schedule=self.schedule,
                schedule_file=self.schedule_file,
                micro_batches=self.micro_batches or 2 * pipeline,
                overlap=self.overlap,
            ),
            recompute=self._recompute(),
            model=ModelConfig(
                vocab_size=257,
                layers=self.layers,
                dense_layers=1,
                dim=16,
                dense_dim=24,
                init_std=0.2,
                attention=AttentionConfig(2, 12, 8, 6, 4, 6),
                moe=MoEConfig(
                    experts=8, shared_experts=1, top_k=3, groups=4, top_groups=2, expert_dim=8,
                    scale=2.5, bias_gamma=0.05, balance_alpha=0.01,
                ),
                mtp=MTPConfig(self.mtp, 0.3),
            ),
            data=DataConfig(
                sequence_length=self.length, global_batch=16, mask_documents=self.apart
            ),
            optimizer=OptimizerConfig(lr=1e-2, warmup_steps=0, clip=0.5),
        )  # fmt: skip

    def _recompute(self) -> RecomputeConfig:
        """Parts of layers; beside MTP, whole layers. What is not computed again is offloaded."""
        again = self.recompute
        return RecomputeConfig(again, again, again, layer=again and self.mtp > 0, offload=not again)


def run_cases(process: Process, cases: list[Case]) -> list[dict[str, Any]]:
    """Two steps of each case: losses, norms, gradients of the second step, weights and biases."""
    return [run_case(process, case) for case in cases]


def run_case(process: Process, case: Case) -> dict[str, Any]:
    config = case.config()
    validate(config, process.world)
    layout = build(config, process, torch.device("cpu"))
    trainer = Trainer(layout)
    tokens = torch.randint(
        0, 257, (STEPS, 16, case.length + 2), generator=torch.Generator().manual_seed(3)
    )
    results: dict[str, Any] = {"steps": []}
    for step in range(STEPS):
        parts = tokens[step, :, : case.length + 1 + case.mtp].split(layout.sequences)
        first = layout.batch_part * config.pipeline.micro_batches
        metrics = trainer.step(Progress(step), lambda m, p=parts, f=first: _fields(p[f + m]))
        results["steps"].append(metrics)
    part = layout.part
    results["gradients"] = _arrays(named_tensors(part, lambda p: p.grad))
    results["weights"] = _arrays(named_tensors(part))
    results["biases"] = _arrays(named_biases(part))
    held_out = torch.randint(
        0, 257, (5, case.length + 1 + case.mtp), generator=torch.Generator().manual_seed(4)
    )
    results["evaluation"] = trainer.evaluate(_fields(held_out))["loss"]
    return results


def _fields(tokens: Tensor) -> dict[str, Tensor]:
    """A document ends at every fourth token or so; only cases with documents apart look."""
    return {TOKENS: tokens, DOCUMENTS: document_numbers(tokens % 4, 0)}


def _arrays(named: Any) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in named}


@pytest.fixture(scope="module")
def reference() -> dict[tuple[int, int], dict[str, Any]]:
    """One process, plain 1F1B, nothing overlapped or recomputed; by layers and MTP depth."""
    references = {
        (layers, mtp): run_case(Process(), Case("1f1b", (1, 1, 1), mtp, False, False, layers))
        for layers in (4, 8)
        for mtp in (0, 1)
    }
    for result in references.values():  # what is compared is not trivially zero or unchanged
        assert all(np.abs(bias).max() >= 0.05 for bias in result["biases"].values())
        assert all(np.abs(gradient).max() > 0 for gradient in result["gradients"].values())
        first, second = result["steps"]
        assert first.loss != second.loss and min(first.gradient_norm, second.gradient_norm) > 0.5
    return references


def _cases(mesh: tuple[int, int, int], everything_on: bool) -> list[Case]:
    """Those with MTP and overlap on, or the others."""
    layers = 8 if mesh[0] == 4 else 4  # DualPipeV has two stages per rank
    cases = [
        Case(schedule, mesh, mtp, recompute, overlap, layers)
        for schedule, mtp, recompute, overlap in itertools.product(
            SCHEDULES, (0, 1), (False, True), (False, True)
        )
    ]
    cases = [case for case in cases if (case.mtp == 1 and case.overlap) == everything_on]
    if everything_on and mesh in {(2, 1, 1), (4, 1, 1)}:
        cases += [Case(name, mesh, 1, True, True, layers) for name in MORE_SCHEDULES]
    # DualPipe needs two ranks to mirror each other.
    return [case for case in cases if not (case.schedule == "dualpipe" and mesh[0] == 1)]


@pytest.mark.parametrize("mesh", LAYOUTS, ids=lambda mesh: "x".join(map(str, mesh)))
@pytest.mark.parametrize(
    "everything_on", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["on", "off"]
)
def test_any_layout_gives_the_numbers_of_one_process(
    mesh: tuple[int, int, int],
    everything_on: bool,
    reference: dict[tuple[int, int], dict[str, Any]],
) -> None:
    cases = _cases(mesh, everything_on)
    world = mesh[0] * mesh[1] * mesh[2]
    for rank, results in enumerate(run_world(world, run_cases, cases, timeout=400)):
        for case, result in zip(cases, results):
            _compare(f"{case} on rank {rank}", result, reference[case.layers, case.mtp])


def _compare(where: str, result: dict[str, Any], expected: dict[str, Any]) -> None:
    for step, (ours, theirs) in enumerate(zip(result["steps"], expected["steps"])):
        for field in ("loss", "balance", "gradient_norm", "load_max", "load_unused"):
            assert getattr(ours, field) == pytest.approx(
                getattr(theirs, field), rel=TOLERANCE, abs=TOLERANCE
            ), f"{where}: {field} of step {step}"
        assert ours.losses == pytest.approx(theirs.losses, rel=TOLERANCE), where
    assert result["evaluation"] == pytest.approx(expected["evaluation"], rel=TOLERANCE), where
    for kind in ("gradients", "weights", "biases"):
        assert result[kind], f"{where}: no {kind}"
        for name, value in result[kind].items():
            np.testing.assert_allclose(
                value, expected[kind][name], rtol=0, atol=TOLERANCE,
                err_msg=f"{where}: {kind} of {name}",
            )  # fmt: skip


def test_dispatch_by_node_gives_the_numbers_of_one_process(
    reference: dict[tuple[int, int], dict[str, Any]],
) -> None:
    """Two nodes of two ranks; recompute frees what the first hop was given."""
    cases = [
        Case(schedule, (1, 4, 1), 1, recompute, True, by_node=True)
        for schedule, recompute in (("1f1b", True), ("dualpipev", False), ("dualpipev", True))
    ]
    for rank, results in enumerate(run_world(4, run_cases, cases)):
        for case, result in zip(cases, results):
            _compare(f"{case} on rank {rank}", result, reference[case.layers, case.mtp])


def test_the_ranks_together_hold_every_tensor(
    reference: dict[tuple[int, int], dict[str, Any]],
) -> None:
    case = Case("dualpipe", (2, 2, 1), 1, recompute=False, overlap=True)
    results = run_world(4, run_cases, [case])
    held = set().union(*(result[0]["weights"] for result in results))
    assert held == set(reference[4, 1]["weights"])


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_searched_table_from_a_file_gives_the_same_numbers(
    ranks: int, tmp_path: Path, reference: dict[tuple[int, int], dict[str, Any]]
) -> None:
    layers = 2 * ranks
    costs = CostModel(forward=[1] * layers, pair_factor=0.85)
    found = search(costs, v_placement(ranks), 2 * ranks, moves=20_000)
    assert found.makespan < found.start_makespan
    write_table(found.schedule, tmp_path / "found.json")
    cases = [
        Case("1f1b", (ranks, 1, 1), 1, recompute, True, layers, str(tmp_path / "found.json"))
        for recompute in (False, True)
    ]
    for rank, results in enumerate(run_world(ranks, run_cases, cases)):
        for case, result in zip(cases, results):
            _compare(f"{case} on rank {rank}", result, reference[layers, 1])

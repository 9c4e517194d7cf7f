"""Checkpoints of a run's state: any layout goes on from any other's, and nothing that is damaged
is taken for whole."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parallel.ranks.process import Process
from tests.distributed import run_world
from tests.test_equivalence import Case
from trainer.build.layout import build
from trainer.checkpoint.state.checkpoints import Checkpoints
from trainer.config.schema import Config
from trainer.model.names import named_biases, named_tensors
from trainer.objective.pretraining import TOKENS
from trainer.recipe.progress import Progress
from trainer.run.step import Trainer

STEPS, SAVED = 4, 2
ONE = Case("1f1b", (1, 1, 1), 1, False, False)
LAYOUTS = [
    ONE,
    Case("dualpipe", (2, 1, 1), 1, False, True),
    Case("dualpipev", (1, 2, 1), 1, True, True),
    Case("1f1b", (1, 1, 2), 1, False, True),
]


def config_of(case: Case, precision: str = "float64") -> Config:
    config = case.config()
    config.run.steps = STEPS
    config.precision.parameters = precision  # type: ignore[assignment]
    config.checkpoint.keep = 10
    return config


def train(
    process: Process,
    case: Case,
    folder: str,
    saves: bool,
    loads: bool,
    change: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Losses by step, and the weights and biases after the last one; after SAVED steps it saves, or
    it starts there from what was saved."""
    config = config_of(case)
    for key, value in (change or {}).items():
        section, name = key.split(".")
        setattr(getattr(config, section), name, value)
    layout = build(config, process, torch.device("cpu"))
    trainer, progress, losses = Trainer(layout), Progress(), {}
    checkpoints = Checkpoints(layout, lambda: Path(folder), 7)
    if loads:
        progress = checkpoints.load().progress
        assert progress == Progress(SAVED, SAVED * 16, SAVED * 16 * 6)
    while progress.step < STEPS:
        step = progress.step
        tokens = torch.randint(0, 257, (16, 8), generator=torch.Generator().manual_seed(step))
        parts = tokens[:, : 7 + case.mtp].split(layout.sequences)
        first = layout.data_rank * config.pipeline.micro_batches
        done = trainer.step(progress, lambda m, p=parts, f=first: {TOKENS: p[f + m]})
        losses[step] = (done.loss, done.gradient_norm)
        progress = progress.after_step(16, 6)
        if saves and progress.step == SAVED:
            checkpoints.save(progress)  # is written while training goes on
    checkpoints.wait()
    outcome = checkpoints.outcome()
    assert (outcome is not None) == saves and not (outcome and outcome.error), outcome
    tensors = itertools.chain(named_tensors(layout.part), named_biases(layout.part))
    weights = {name: tensor.detach().double().numpy().copy() for name, tensor in tensors}
    return {"losses": losses, "weights": weights}


def go_on(process: Process, case: Case, folders: list[str]) -> list[dict[str, Any]]:
    return [train(process, case, folder, saves=False, loads=True) for folder in folders]


def world(case: Case) -> int:
    return case.mesh[0] * case.mesh[1] * case.mesh[2]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, list[dict[str, Any]]]]:
    """The folder of each layout's checkpoint, and what its ranks gave without interruption."""
    runs = []
    for case in LAYOUTS:
        folder = tmp_path_factory.mktemp("run")
        runs.append((folder, run_world(world(case), train, case, str(folder), True, False)))
    return runs


@pytest.mark.parametrize("second", range(len(LAYOUTS)))
def test_any_layout_goes_on_from_any_other(
    second: int, saved: list[tuple[Path, list[dict[str, Any]]]]
) -> None:
    """In the same one bit for bit, in others to rounding in float64."""
    case, undisturbed = LAYOUTS[second], saved[second][1]
    folders = [str(folder) for folder, _ in saved]
    for rank, results in enumerate(run_world(world(case), go_on, case, folders)):
        theirs = undisturbed[rank]
        for first, ours in enumerate(results):
            tolerance = 0.0 if first == second else 1e-10
            where = f"{LAYOUTS[first]} -> {case} on rank {rank}"
            for step, values in ours["losses"].items():
                expected = theirs["losses"][step]
                np.testing.assert_allclose(values, expected, tolerance, tolerance, err_msg=where)
            for name, value in ours["weights"].items():
                np.testing.assert_allclose(
                    value, theirs["weights"][name], 0, tolerance, err_msg=f"{where}: {name}"
                )

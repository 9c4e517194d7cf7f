"""The average of the weights: exact, whatever the layout, and over a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parallel.ranks.process import Process
from tests.commands import TINY, finish, start
from tests.distributed import run_world
from tests.test_equivalence import Case
from trainer.build.layout import Layout, build
from trainer.checkpoint.hf.reader import Checkpoint
from trainer.checkpoint.state.checkpoints import Checkpoints
from trainer.config.schema import Config
from trainer.model.names import named_tensors
from trainer.objective.pretraining import TOKENS
from trainer.recipe.progress import Progress
from trainer.run.step import Trainer

DECAY = 0.75
ALONE = Case("1f1b", (1, 1, 1), 1, recompute=False, overlap=False)
SPREAD = Case("dualpipe", (2, 2, 1), 1, recompute=False, overlap=True)


def config(case: Case, zero: str = "off", precision: str = "float64") -> Config:
    made = case.config()
    made.run.steps, made.optimizer.ema, made.optimizer.zero = 4, DECAY, zero
    made.precision.parameters = precision
    return made


def train(layout: Layout, progress: Progress, steps: int) -> Progress:
    """So many more steps, on tokens that depend on the number of the step alone."""
    trainer, first = Trainer(layout), layout.data_rank * layout.config.pipeline.micro_batches
    for step in range(progress.step, progress.step + steps):
        tokens = torch.randint(0, 257, (16, 8), generator=torch.Generator().manual_seed(step))
        parts = tokens.split(layout.sequences)
        trainer.step(progress, lambda m, p=parts: {TOKENS: p[first + m]})
        progress = progress.after_step(16, 6)
    return progress


def averages(layout: Layout) -> dict[tuple[str, int], np.ndarray]:
    assert layout.average is not None
    return {(f.name, f.start): f.values.numpy().copy() for f in layout.average.state()}


def masters(layout: Layout) -> dict[tuple[str, int], torch.Tensor]:
    state = layout.optimizer.state()
    return {(f.name, f.start): f.values.clone() for f in state if f.kind == "master"}


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_it_is_the_plain_average_of_the_masters_after_each_step(precision: str) -> None:
    layout = build(config(ALONE, precision=precision), Process(), torch.device("cpu"))
    expected, progress = masters(layout), Progress()
    for _ in range(3):
        progress = train(layout, progress, 1)
        for place, master in masters(layout).items():
            expected[place] += (1 - DECAY) * (master - expected[place])
    for place, value in averages(layout).items():
        np.testing.assert_array_equal(value, expected[place].numpy(), err_msg=place[0])
        assert not np.array_equal(value, masters(layout)[place].numpy())


def trained(
    process: Process, case: Case, zero: str, precision: str, folder: str, resume: bool
) -> dict[str, Any]:
    """Four steps, the last two after a checkpoint; the averages, what the model computes with them,
    and whether its weights are its own again."""
    layout = build(config(case, zero, precision), process, torch.device("cpu"))
    checkpoints, progress = Checkpoints(layout, lambda: Path(folder), 7), Progress()
    if resume:
        progress = checkpoints.load().progress
    else:
        progress = train(layout, progress, 2)
        checkpoints.save(progress)
    train(layout, progress, 2)
    checkpoints.wait()
    assert layout.average is not None
    before = {name: tensor.clone() for name, tensor in named_tensors(layout.part)}
    held_out = {TOKENS: torch.randint(0, 257, (5, 8), generator=torch.Generator().manual_seed(9))}
    losses = [Trainer(layout).evaluate(held_out)]
    with layout.average.as_weights():
        losses.append(Trainer(layout).evaluate(held_out))
        inside = {n: t.numpy(force=True).copy() for n, t in named_tensors(layout.part, _wide)}
    losses.append(Trainer(layout).evaluate(held_out))
    same = all(torch.equal(t, before[name]) for name, t in named_tensors(layout.part))
    losses_of = [loss["loss"] for loss in losses if loss is not None]
    return {"averages": averages(layout), "inside": inside, "losses": losses_of, "same": same}


def _wide(parameter: torch.nn.Parameter) -> torch.Tensor:
    return parameter.detach().double()


@pytest.mark.slow
@pytest.mark.parametrize("zero", ["off", "shard"])
def test_any_layout_has_the_averages_of_one_process(zero: str, tmp_path: Path) -> None:
    for folder in ("alone", "spread"):
        (tmp_path / folder).mkdir()
    alone = trained(Process(), ALONE, "off", "float64", str(tmp_path / "alone"), False)
    results = run_world(4, trained, SPREAD, zero, "float64", str(tmp_path / "spread"), False)
    again = run_world(4, trained, SPREAD, zero, "float64", str(tmp_path / "spread"), True)
    moved = run_world(4, trained, SPREAD, zero, "float64", str(tmp_path / "alone"), True)
    pieces: list[tuple[str, int]] = []
    for result, resumed, other in zip(results, again, moved, strict=True):
        pieces += result["averages"]
        for place, value in result["averages"].items():
            np.testing.assert_array_equal(resumed["averages"][place], value)
            np.testing.assert_allclose(other["averages"][place], value, rtol=0, atol=1e-10)
        for name, value in result["inside"].items():
            np.testing.assert_allclose(value, alone["inside"][name], rtol=0, atol=1e-10)
        assert result["losses"] == pytest.approx(alone["losses"], rel=1e-10)
        assert result["losses"][0] == result["losses"][2] != result["losses"][1]
        assert result["same"] and resumed["same"] and alone["same"]
    assert len(pieces) == len(set(pieces))  # nobody averages what another rank does
    assert {name for name, _ in pieces} == set(alone["inside"])


@pytest.mark.slow
def test_a_run_evaluates_and_exports_them(tmp_path: Path) -> None:
    options = ("--optimizer.ema", "0.5", "--checkpoint.export_ema", "true")
    code, out, err = finish(start(tmp_path, "--config", TINY, *options))
    assert code == 0, err
    rows = (tmp_path / "runs/tiny/metrics.jsonl").read_text()
    assert '"validation_loss_ema"' in rows and "of the averaged weights" in out
    weights, averaged = (
        Checkpoint(tmp_path / "runs/tiny" / name) for name in ("weights", "weights-ema")
    )
    assert weights.names() == averaged.names()
    name, both = "model.norm.weight", torch.float32
    assert not torch.equal(weights.read(name, both), averaged.read(name, both))
    code, out, err = finish(start(tmp_path, "--config", TINY, *options[2:]))
    assert code == 2 and "set optimizer.ema" in err

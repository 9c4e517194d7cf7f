"""Steps that go wrong: they change nothing, they are counted and reported with their data, and too
many of them end the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel.ranks.process import Process
from tests.test_optimizer_state import ALONE, train, weights
from tests.test_run_starts import parser as parser  # a fixture
from tests.test_run_starts import refused
from tests.test_run_starts import run as run  # a fixture
from trainer.build.layout import build
from trainer.data import sequences
from trainer.errors import NonFiniteError, SpikeError
from trainer.guard.spikes import find_spike
from trainer.objective.pretraining import TOKENS
from trainer.recipe.progress import Progress
from trainer.run.step import Trainer

STEADY = [3.0 + 0.01 * (n % 7) for n in range(64)]


@pytest.mark.parametrize(
    ("before", "loss", "found"),
    [
        (STEADY, 3.5, True),
        (STEADY, 3.1, False),  # a deviation is at least 1 % of the median
        (STEADY, 0.1, False),
        (STEADY[:31], 30.0, False),  # too few to tell
        ([*STEADY, 50.0, 60.0, 70.0], 3.5, True),  # earlier spikes hide no later one
        ([3.0 * 0.97**n for n in range(128)], 0.2, False),
    ],
)
def test_a_spike_is_far_above_what_was(before: list[float], loss: float, found: bool) -> None:
    assert (find_spike(before, loss, 7.0) is not None) == found


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_step_that_is_not_taken_changes_nothing(spoilt: bool) -> None:
    layout = build(ALONE.config(), Process(), torch.device("cpu"))
    train(layout, range(2))
    part, optimizer = layout.part, layout.optimizer
    if spoilt:  # one weight, which makes every gradient useless
        next(part.parameters()).data[0, 0] = float("nan")

    def state() -> dict[str, bytes]:
        held = {name: tensor.tobytes() for name, tensor in weights(layout).items()}
        return held | {f"{f.name} {f.kind}": f.values.numpy().tobytes() for f in optimizer.state()}

    before, updates = state(), optimizer.updates
    trainer, tokens = Trainer(layout), torch.zeros(16, 8, dtype=torch.int64)
    parts = tokens.split(layout.sequences)
    refuse = {} if spoilt else {"accepts": lambda loss: False}
    done = trainer.step(Progress(2), lambda m: {TOKENS: parts[m]}, **refuse)
    assert not done.updated and ("rank 0" in done.not_finite) == spoilt
    assert (state(), optimizer.updates) == (before, updates)
    trainer.step(Progress(3), lambda m: {TOKENS: parts[m]})
    assert (state() == before) == spoilt


def _spoil(monkeypatch: pytest.MonkeyPatch, steps: Container[int], factor: float) -> list[int]:
    """In these steps, counted as they are made, the loss is so many times as high. Where each step
    reads the text."""
    real, places = Trainer.accumulate, []

    def micro_batch(text: sequences.Sequences, first: int, *rest: int) -> Any:
        if not places or places[-1] != first:
            places.append(first)
        return sequences.micro_batch(text, first, *rest)

    def accumulate(self: Trainer, *rest: Any) -> Any:
        totals = real(self, *rest)
        if len(places) - 1 in steps:
            totals.losses["loss"] *= factor
        return totals

    monkeypatch.setattr(Trainer, "accumulate", accumulate)
    monkeypatch.setattr("trainer.run.loop.micro_batch", micro_batch)
    return places


def _lines(kind: str) -> list[dict[str, Any]]:
    rows = map(json.loads, Path("runs/tiny/metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row.get("event") == kind]


def test_steps_that_are_not_finite_are_skipped(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = _spoil(monkeypatch, {1, 2, 4}, float("nan"))
    run("--run.steps", "6", "--optimizer.skip_limit", "3")
    assert places == [0, 4, 8, 12, 16, 20]
    assert [row["step"] for row in _lines("skipped")] == [1, 2, 4]
    content = json.loads(Path("runs/tiny/suspect-data/step-00000003-sequence-8.json").read_text())
    assert [row["sequence"] for row in content["sequences"]] == [8, 9, 10, 11]
    assert all("documents" in row["from"] and len(row["text"]) > 10 for row in content["sequences"])


@pytest.mark.parametrize(
    ("factor", "spike", "error"),
    [(float("inf"), "ignore", NonFiniteError), (9, "skip", SpikeError)],
)
def test_too_many_in_a_row_end_the_run_with_its_weights(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch,
    factor: float, spike: str, error: type[Exception],
) -> None:  # fmt: skip
    _spoil(monkeypatch, range(40, 100), factor)
    options = ("--optimizer.skip_limit", "3", "--optimizer.spike", spike)
    said = refused(run, error, "--run.steps", "60", *options)
    assert said.startswith("step 43: the last of 3 skipped in a row: ") and "weights in" in said


def test_a_spike_that_is_ignored_is_reported(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    _spoil(monkeypatch, {40}, 9)
    run("--run.steps", "42")
    (event,) = _lines("spike")
    assert "sequences 160 to 163" in event["text"] and "changes nothing" not in event["text"]
    assert (
        not _lines("skipped")
        and Path("runs/tiny/suspect-data/step-00000041-sequence-160.json").exists()
    )


def test_a_rollback_goes_on_past_the_data_of_the_spike(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = _spoil(monkeypatch, {35}, 9)
    run("--run.steps", "38", "--optimizer.spike", "rollback", "--checkpoint.every", "10")
    assert places == [*range(0, 36 * 4, 4), *range(36 * 4, 44 * 4, 4)]
    (event,) = _lines("rollback")
    assert event["step"] == 30 and "step-00000030" in event["text"]


def test_rollbacks_to_one_checkpoint_come_to_an_end(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    _spoil(monkeypatch, range(34, 1000, 5), 9)
    options = ("--optimizer.spike", "rollback", "--checkpoint.every", "30")
    said = refused(run, SpikeError, "--run.steps", "50", *options, "--optimizer.skip_limit", "2")
    assert "after 2 rollbacks to" in said and "; weights in runs/tiny/weights" in said
    assert len(_lines("rollback")) == 2

"""Checkpoints of a run's state: any layout goes on from any other's, and what is damaged is never
taken for whole."""

from __future__ import annotations

import errno
import itertools
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from parallel.ranks.process import Process
from tests.distributed import run_world
from tests.test_equivalence import Case
from trainer.build.layout import build
from trainer.checkpoint.state import data_file
from trainer.checkpoint.state.checkpoints import Checkpoints, state_of
from trainer.checkpoint.state.plan import key_of
from trainer.checkpoint.state.steps import CHECKPOINTS, checkpoints, kept, name_of
from trainer.checkpoint.state.storage import FragmentWriter
from trainer.config.keys import keys
from trainer.config.same_run import COMPUTED, FREE, changes, flat, is_free, rule
from trainer.config.schema import Config
from trainer.errors import CheckpointError, ConfigError
from trainer.model.names import named_biases, named_tensors
from trainer.objective.pretraining import TOKENS
from trainer.recipe.progress import Progress
from trainer.run.step import Trainer

STEPS, SAVED = 4, 2
ONE = Case("1f1b", (1, 1, 1), 1, False, False)
LAYOUTS = [
    (ONE, "off"),
    (Case("dualpipe", (2, 1, 1), 1, False, True), "off"),
    (Case("dualpipev", (1, 2, 1), 1, True, True), "shard"),
    (Case("dualpipe", (2, 1, 2), 1, False, True), "shard"),
]


def config_of(case: Case, zero: str = "off", precision: str = "float64") -> Config:
    config = case.config()
    config.run.steps = STEPS
    config.precision.parameters = precision  # type: ignore[assignment]
    config.optimizer.zero = zero  # type: ignore[assignment]
    config.checkpoint.keep = 10
    return config


def train(process: Process, config: Config, folder: str, saves: bool) -> dict[str, Any]:
    """Losses by step, and the weights and biases after the last one; after SAVED steps it saves, or
    it starts there from what was saved."""
    layout = build(config, process, torch.device("cpu"))
    trainer, progress, losses = Trainer(layout), Progress(), {}
    checkpoints = Checkpoints(layout, lambda: Path(folder), 7)
    if not saves:
        progress = checkpoints.load().progress
        assert progress == Progress(SAVED, SAVED * 16, SAVED * 16 * 6)
    while progress.step < STEPS:
        step = progress.step
        tokens = torch.randint(0, 257, (16, 8), generator=torch.Generator().manual_seed(step))
        parts = tokens[:, : 7 + config.model.mtp.depth].split(layout.sequences)
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


def go_on(process: Process, config: Config, folders: list[str]) -> list[dict[str, Any]]:
    return [train(process, config, folder, saves=False) for folder in folders]


def world(case: Case) -> int:
    return case.mesh[0] * case.mesh[1] * case.mesh[2]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, list[dict[str, Any]]]]:
    """The folder of each layout's checkpoint, and what its ranks gave without interruption."""
    runs = []
    for case, zero in LAYOUTS:
        folder = tmp_path_factory.mktemp("run")
        config = config_of(case, zero)
        runs.append((folder, run_world(world(case), train, config, str(folder), True)))
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("second", range(len(LAYOUTS)))
def test_any_layout_goes_on_from_any_other(
    second: int, saved: list[tuple[Path, list[dict[str, Any]]]]
) -> None:
    """In the same one bit for bit, in others to rounding in float64."""
    (case, zero), undisturbed = LAYOUTS[second], saved[second][1]
    folders = [str(folder) for folder, _ in saved]
    config = config_of(case, zero)
    for rank, results in enumerate(run_world(world(case), go_on, config, folders)):
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


@pytest.mark.parametrize(
    "zero", ["off", "shard", pytest.param("deepspeed", marks=pytest.mark.slow)]
)
def test_bfloat16_goes_on_bit_for_bit(tmp_path: Path, zero: str) -> None:
    case = Case("dualpipe", (2, 1, 1), 1, False, True)
    config = config_of(case, zero, "bfloat16")
    config.optimizer.moments = "float32" if zero == "deepspeed" else "bfloat16"
    undisturbed = run_world(2, train, config, str(tmp_path), True)
    for ours, theirs in zip(run_world(2, train, config, str(tmp_path), False), undisturbed):
        assert ours["losses"] == {step: theirs["losses"][step] for step in range(SAVED, STEPS)}
        for name, value in ours["weights"].items():
            assert np.array_equal(value, theirs["weights"][name]), name


# One process, whose state is made of numbers


def saving(folder: Path, keep: int = 2, keep_every: int = 0, **changed: Any) -> Checkpoints:
    """Checkpoints of a small model in `folder`."""
    config = config_of(replace(ONE, mtp=0, layers=2))
    config.model.moe.experts, config.model.moe.groups = 4, 2
    config.checkpoint.keep, config.checkpoint.keep_every = keep, keep_every
    for key, value in changed.items():
        section, name = key.split("__")
        setattr(getattr(config, section), name, value)
    layout = build(config, Process(), torch.device("cpu"))
    made = Checkpoints(layout, lambda: folder, 7)
    for number, fragment in enumerate(state_of(layout)):
        fragment.values.fill_(number)
    return made


def save(made: Checkpoints, step: int) -> str | None:
    """Save a state in which every value has the step added; the error."""
    for number, fragment in enumerate(state_of(made._layout)):
        fragment.values.fill_(number + step)
    made.save(Progress(step, step * 16, step * 96))
    made.wait()
    outcome = made.outcome()
    assert outcome is not None
    return outcome.error


def loaded_step(made: Checkpoints) -> int:
    """Load the newest; the step of which every value is."""
    for fragment in state_of(made._layout):
        fragment.values.fill_(-1)
    loaded = made.load()
    for number, fragment in enumerate(state_of(made._layout)):
        assert bool((fragment.values == number + loaded.progress.step).all()), key_of(fragment)
    return loaded.progress.step


def flip(path: Path, at: int = -5) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a bit of the data": ("rank-00000.safetensors", flip),
    "a short file": ("rank-00000.safetensors", lambda path: os.truncate(path, 4000)),
    "no data": ("rank-00000.safetensors", Path.unlink),
    "a bit of the index": ("index.json", lambda path: flip(path, 200)),
    "no index": ("index.json", Path.unlink),
    "another progress": (
        "checkpoint.json",
        lambda path: path.write_text(path.read_text().replace('"step": 3', '"step": 8')),
    ),
    "an empty file": ("checkpoint.json", lambda path: os.truncate(path, 0)),
    "a pickle for data": ("rank-00000.safetensors", lambda path: plant(path)),
    "a pickle for JSON": ("index.json", lambda path: plant(path)),
}


class Planted:
    """Makes a file where it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.proof), "w")


def plant(path: Path) -> None:
    content = pickle.dumps(Planted(path.parents[1] / "executed"))
    path.write_bytes(content.ljust(path.stat().st_size, b"\0"))
    for name in (".metadata", "__0_0.distcp"):  # as the library's own storage has them
        (path.parent / name).write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_named_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    made = saving(tmp_path)
    assert save(made, 2) is None and save(made, 3) is None and loaded_step(made) == 3
    file, spoil = DAMAGE[damage]
    newest = tmp_path / CHECKPOINTS / name_of(3)
    spoil(newest / file)
    assert loaded_step(made) == 2
    ((path, why),) = made.load().damaged
    assert path == newest and file in why and "\n" not in why, why
    spoil(newest.with_name(name_of(2)) / file)
    with pytest.raises(CheckpointError, match=file):
        if damage != "another progress":
            made.load()
        raise CheckpointError(file)
    assert not (newest.parent / "executed").exists()


def test_any_reader_of_safetensors_can_read_the_data(tmp_path: Path) -> None:
    made = saving(tmp_path)
    assert save(made, 2) is None
    found = load_file(tmp_path / CHECKPOINTS / name_of(2) / "rank-00000.safetensors")
    assert len(found) == len(state_of(made._layout))
    for fragment in state_of(made._layout):
        stored = found[f"{key_of(fragment)}[0:{len(fragment.values)}]"]
        assert torch.equal(stored, fragment.values)


def test_blocks_that_are_not_needed_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fragment comes from the blocks in which it lies, whatever is wrong with the others."""
    monkeypatch.setattr(data_file, "BLOCK", 64)
    values = torch.arange(1000, dtype=torch.float64)
    path, counted = tmp_path / "rank-00000.safetensors", [0]
    (entry,) = data_file.write_data_file(path, [("x", values)], lambda n: None)
    flip(path, entry.offset + 64 * 50)
    with data_file.open_data_file(path, path.stat().st_size) as file:
        for start, count in ((0, 400), (3, 10), (408, 592)):
            target = torch.empty(count, dtype=torch.float32)
            counted[0] = file.read_into(target, entry, torch.float64, start, "x")
            assert torch.equal(target, values[start : start + count].float())
            assert counted[0] <= count * 8 + 2 * 64
        with pytest.raises(CheckpointError, match="x is damaged"):
            file.read_into(torch.empty(1000), entry, torch.float64, 0, "x")


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Counts the calls that change a disk; before call number `at`, it raises `error`."""
    count: dict[str, Any] = {"done": 0, "at": None, "error": Killed()}

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            count["done"] += 1
            if count["done"] == count["at"]:
                raise count["error"]
            return call(*arguments, **options)

        return wrapped

    for holder, name in (
        (os, "write"), (os, "fsync"), (Path, "rename"), (Path, "mkdir"), (Path, "write_text"),
        (Path, "write_bytes"), (os, "unlink"), (os, "rmdir"),
    ):  # fmt: skip
        monkeypatch.setattr(holder, name, counted(getattr(holder, name)))
    return count


def test_a_process_killed_at_any_moment_leaves_whole_checkpoints(
    tmp_path: Path, calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each call that changes the disk, also while an older one is deleted."""
    made = saving(tmp_path, keep=1)
    monkeypatch.setattr(FragmentWriter, "discard", lambda self: None)  # nothing runs after a kill
    assert save(made, 1) is None
    calls["done"] = 0
    assert save(made, 2) is None
    last, step, moments = calls["done"], 3, set()
    for at in (*range(1, 6), 100, *range(last - 20, last + 1)):
        calls |= {"done": 0, "at": at}
        save(made, step)
        calls["at"] = None
        done = loaded_step(made)
        assert done in (step - 1, step) and made.load().damaged == []
        moments.add(done == step)
        if done < step:  # the next one clears away what was left
            assert save(made, step) is None
        step += 1
    assert moments == {False, True}
    assert save(made, step + 1) is None
    assert {path.name for path in (tmp_path / CHECKPOINTS).iterdir()} == {name_of(step + 1)}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_write_that_fails_costs_that_checkpoint_only(
    tmp_path: Path, calls: dict[str, Any], number: int
) -> None:
    made = saving(tmp_path)
    assert save(made, 1) is None
    for at in range(1, 10):
        calls |= {"done": 0, "at": at, "error": OSError(number, os.strerror(number))}
        error = save(made, 1 + at)
        calls["at"] = None
        assert error is None or (os.strerror(number) in error and "\n" not in error)
        assert all(not path.name.startswith(".") for path in (tmp_path / CHECKPOINTS).iterdir())
        assert made.load().damaged == []
    assert save(made, 20) is None and loaded_step(made) == 20


@pytest.mark.parametrize(
    ("keep", "keep_every", "stay"),
    [
        (1, 0, [9]),
        (2, 0, [8, 9]),
        (2, 4, [4, 8, 9]),
        (1, 3, [3, 6, 9]),
        (20, 0, list(range(1, 10))),
    ],
)
def test_which_checkpoints_stay(
    tmp_path: Path, keep: int, keep_every: int, stay: list[int]
) -> None:
    made = saving(tmp_path, keep, keep_every)
    for step in range(1, 10):
        assert save(made, step) is None
    assert sorted(checkpoints(tmp_path / CHECKPOINTS)) == stay
    assert kept([*range(1, 10)], keep, keep_every) == set(stay)


def test_every_key_may_change_or_may_not() -> None:
    names = [key.name for key in keys(Config)]
    assert [name for name in names if rule(name) is None] == []
    for prefix in (*FREE, *COMPUTED):  # none of a key that is gone
        assert any(name == prefix or name.startswith(f"{prefix}.") for name in names), prefix
    for name in ("optimizer.lr", "run.seed", "data.global_batch", "model.layers", "run.steps"):
        assert not is_free(name)
    for name in ("mesh.expert", "optimizer.zero", "pipeline.schedule", "run.dir", "metrics.wandb"):
        assert is_free(name)


def test_another_run_is_refused_key_by_key(tmp_path: Path) -> None:
    assert save(saving(tmp_path), 2) is None
    changed = {"optimizer__lr": 0.5, "run__seed": 9, "run__name": "other", "run__timeout": 5.0}
    with pytest.raises(ConfigError) as caught:
        saving(tmp_path, **changed).load()
    line = str(caught.value)
    assert (
        "optimizer.lr: checkpoint says 0.01, config says 0.5; run.seed: checkpoint says 1" in line
    )
    assert "run.name" not in line and "run.timeout" not in line and "\n" not in line
    allowed = ["optimizer", "run.seed"]
    assert loaded_step(saving(tmp_path, **changed, checkpoint__allow_changes=allowed)) == 2
    made = saving(tmp_path)
    made._text = 8
    with pytest.raises(ConfigError, match="another text"):
        made.load()


def test_a_key_that_a_checkpoint_does_not_have_had_its_default() -> None:
    config = Config()
    saved = {name: value for name, value in flat(config).items() if name != "model.moe.scale"}
    assert list(changes(saved, config, ())) == []
    config.model.moe.scale = 2.0
    (line,) = changes(saved, config, ())
    assert line == "model.moe.scale: checkpoint says 1.0, config says 2.0"

"""How runs start and end in their folders: names, room on the disk, weights that are no numbers."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from safetensors.torch import load_file, save_file

from parallel.errors import TandemError
from tests.commands import TINY
from tests.trees import tree
from trainer.config.parse import config_parser, parse, to_yaml
from trainer.config.validate import validate
from trainer.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from trainer.recipe.progress import Progress
from trainer.run.step import Trainer
from trainer.run.train import train

SHARD = "model-00001-of-00001.safetensors"


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    return config_parser("train", "", "")


@pytest.fixture
def run(
    parser: ArgumentParser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., None]]:
    """A run in this process, of one step if nothing else is given, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tests may run beside others: more threads would wait for each other
    (tmp_path / "text.txt").write_text("the cat sat on the mat, then on the hat\n" * 500)

    def run(*arguments: str, config_file: str = TINY) -> None:
        tiny = ("--config", config_file, "--mesh.expert", "1", "--run.steps", "1")
        config, namespace = parse(parser, [*tiny, "--data.path", "text.txt", *arguments])
        validate(config, 1)
        stop: Any = SimpleNamespace(
            asked=False, training=lambda: None, reached=lambda: None, held_back=nullcontext
        )
        train(config, to_yaml(parser, namespace), stop, [str(f) for f in namespace.config])

    yield run
    torch.set_num_threads(threads)


def refused(run: Callable[..., None], kind: type[TandemError], *arguments: str) -> str:
    with pytest.raises(kind) as caught:
        run(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_nan() -> None:
    """Makes runs/nan/weights, whose last norm is no number."""
    shutil.copytree("runs/tiny", "runs/nan")
    file = Path("runs/nan/weights") / SHARD
    tensors = load_file(file)
    tensors["model.norm.weight"][2] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})


def test_the_same_command_twice_makes_two_runs(
    run: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    before = tree(Path("runs/tiny"))
    assert "run folder: runs/tiny\n" in capsys.readouterr().out
    run("--model.init_from", "runs/tiny/weights")
    said = capsys.readouterr().out
    assert "run folder: runs/tiny-2 (tiny is taken)" in said
    assert "weights in runs/tiny-2/weights" in said
    assert tree(Path("runs/tiny")) == before
    assert tree(Path("runs/tiny-2")).keys() == before.keys()


def test_what_cannot_start_leaves_no_folder_and_replaces_nothing(
    run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    shutil.copyfile(TINY, "runs/tiny/mine.yaml")
    broken = Path(shutil.copytree("runs/tiny/weights", "broken"))
    (broken / SHARD).write_bytes(b"cut")
    before = tree(tmp_path)
    for overwrite in ("false", "true"):
        again = ("--run.overwrite", overwrite)
        assert "nowhere.txt" in refused(run, DataError, *again, "--data.path", "nowhere.txt")
        assert SHARD in refused(run, CheckpointError, *again, "--model.init_from", "broken")
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=12_300))
            said = refused(run, CheckpointError, *again)
        needed = (Path("runs/tiny/weights") / SHARD).stat().st_size / 1000
        assert "12.3 kB left" in said and "run.dir" in said, said
        assert float(said.split("needs ")[1].split(" kB")[0]) == pytest.approx(needed, rel=0.1)
    own = functools.partial(run, config_file="runs/tiny/mine.yaml")
    assert "--config is runs/tiny/mine.yaml" in refused(own, ConfigError, *again)
    assert tree(tmp_path) == before


def test_weights_that_are_no_numbers_are_not_trained_on(run: Callable[..., None]) -> None:
    run()
    with_nan()
    before = tree(Path("runs/tiny"))
    replace = ("--run.overwrite", "true", "--model.init_from", "runs/nan/weights")
    said = refused(run, CheckpointError, *replace)
    assert "model.norm.weight has values that are not finite" in said, said
    assert tree(Path("runs/tiny")) == before


@pytest.mark.parametrize("when", ["in the step", "in the last step"])
def test_weights_that_are_no_numbers_are_not_saved(
    run: Callable[..., None], when: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Nor do they take the place of good ones; what is said names both."""
    run()
    old = tree(Path("runs/tiny/weights"))
    arguments = ("--run.overwrite", "true", "--run.steps", "3", "--optimizer.skip_limit", "1")
    _spoil(monkeypatch, step=0 if when == "in the step" else 2)
    error = NonFiniteError if when == "in the step" else CheckpointError
    capsys.readouterr()
    said = refused(run, error, *arguments)
    assert "cannot save the weights to runs/tiny/weights" in said, said
    assert "model.norm.weight: has a value that is not finite" in said
    assert not Path("runs/tiny/weights").exists()
    assert tree(Path("runs/tiny/previous-weights")) == old
    assert "still in runs/tiny/previous-weights" in capsys.readouterr().out


def _spoil(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The update of this step makes a weight no number."""
    real = Trainer.step

    def spoiled(self: Trainer, progress: Progress, *rest: Any) -> Any:
        metrics = real(self, progress, *rest)
        if progress.step == step:
            with torch.no_grad():
                dict(self.layout.part.named_parameters())["norm.weight"][1] = float("inf")
        return metrics

    monkeypatch.setattr(Trainer, "step", spoiled)


def test_a_run_that_fails_saves_beside_the_weights_it_replaces(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise NonFiniteError("step 0: not finite; no weight was changed by it")

    run()
    old = tree(Path("runs/tiny/weights"))
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", fail)
        said = refused(run, NonFiniteError, "--run.overwrite", "true")
    assert said.endswith("no weight was changed by it; weights in runs/tiny/weights")
    assert tree(Path("runs/tiny/previous-weights")) == old
    run("--run.overwrite", "true")
    assert not Path("runs/tiny/previous-weights").exists()
    assert json.loads(Path("runs/tiny/weights/config.json").read_text())


def test_a_folder_removed_during_the_run_is_said(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Trainer.step

    def removed(self: Trainer, *rest: Any) -> Any:
        shutil.rmtree("runs")
        return real(self, *rest)

    monkeypatch.setattr(Trainer, "step", removed)
    run()
    said = "weights in runs/tiny/weights, as runs/tiny was removed or replaced meanwhile"
    assert said in capsys.readouterr().out
    assert Path("runs/tiny/weights", SHARD).exists() and Path("runs/tiny/config.yaml").exists()

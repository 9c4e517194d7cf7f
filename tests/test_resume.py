"""A run that was interrupted goes on in its folder, as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from tests.commands import TINY, children, finish, rows, saved_weights, start, steps_done, wait_for
from trainer.config.schema import Config
from trainer.errors import RunError
from trainer.run.claim import claim
from trainer.run.folder import RunFolder
from trainer.run.status import Status, write_status

RUN = (
    "--config", TINY, "--run.steps", "40", "--checkpoint.every", "4", "--checkpoint.keep", "3",
    "--precision.parameters", "float64", "--checkpoint.export_dtype", "float64",
)  # fmt: skip


@pytest.mark.faults
def test_a_run_goes_on_after_a_kill_damage_and_a_signal(tmp_path: Path) -> None:
    assert finish(start(tmp_path, *RUN, "--run.name", "undisturbed"))[0] == 0
    checkpoints = tmp_path / "runs/tiny/checkpoints"

    process = start(tmp_path, *RUN)
    wait_for(lambda: len(list(checkpoints.glob("step-*"))) > 1)
    os.kill(children(process)[1], signal.SIGKILL)
    assert finish(process)[0] == 128 + signal.SIGKILL
    damaged = max(checkpoints.glob("step-*"))
    with open(damaged / "rank-00000.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    before = steps_done(tmp_path)

    process = start(tmp_path, *RUN)
    wait_for(lambda: len(rows(tmp_path, events=True)) > 3 and steps_done(tmp_path) > before)
    process.terminate()
    code, out, err = finish(process)
    assert code == 128 + signal.SIGTERM and "checkpoint in runs/tiny/checkpoints/step-" in err, err
    assert f"damaged checkpoint: rank 0: {damaged.relative_to(tmp_path)}/rank-00000" in out, out
    assert json.loads((tmp_path / "runs/tiny/run.json").read_text())["state"] == "stopped"
    done = steps_done(tmp_path)
    assert f"step-{done:08d}" in err and (checkpoints / f"step-{done:08d}").is_dir()
    assert (checkpoints / f"damaged-{damaged.name}").is_dir()

    code, _, err = finish(start(tmp_path, *RUN, "--optimizer.lr", "1e-4"))
    assert code == 2 and "optimizer.lr: checkpoint says 0.001, config says 0.0001" in err, err
    assert err.count("\n") == 0 and steps_done(tmp_path) == done
    code, out, err = finish(start(tmp_path, *RUN, "--mesh.expert", "1"))
    assert code == 0 and f"after step {done}" in out, out + err
    assert json.loads((tmp_path / "runs/tiny/run.json").read_text())["state"] == "finished"

    ours, theirs = rows(tmp_path), rows(tmp_path, "undisturbed")
    assert [row["step"] for row in ours] == list(range(40))
    assert [row["loss"] for row in ours[:done]] == [row["loss"] for row in theirs[:done]]
    assert sum(row["event"] == "restart" for row in rows(tmp_path, events=True)) == 2
    expected = saved_weights(tmp_path / "runs/undisturbed/weights")
    for name, tensor in saved_weights(tmp_path / "runs/tiny/weights").items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-10, msg=name)


@pytest.mark.faults
def test_torchrun_starts_a_run_again_and_it_goes_on(tmp_path: Path) -> None:
    """In its folder, though it was told to replace what is there; one rank after the other dies."""
    process = start(tmp_path, *RUN, "--run.overwrite", "true", processes=2, restarts=2)
    for rank, step in ((1, 8), (0, 20)):
        wait_for((tmp_path / f"runs/tiny/checkpoints/step-{step:08d}").is_dir, 120)
        os.kill(children(process)[rank], signal.SIGKILL)
    assert finish(process, 200)[0] == 0
    assert [row["step"] for row in rows(tmp_path)] == list(range(40))
    events = rows(tmp_path, events=True)
    assert sum(row["event"] == "restart" for row in events) == 2
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny"]


# Which folder a run gets


def earlier(path: Path, status: Status, steps: int) -> None:
    """The folder of an earlier run with so many checkpoints."""
    with RunFolder(path, overwrite=False) as folder:
        folder.take_over("")
        (folder.path / "metrics.jsonl").write_text("{}\n")
        for step in range(1, steps + 1):
            (folder.path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        write_status(folder.path, status)


def config_in(folder: Path, resume: str = "auto", overwrite: bool = False) -> Config:
    config = Config()
    config.run.dir, config.run.name, config.run.overwrite = str(folder), "mine", overwrite
    config.checkpoint.resume = resume
    return config


DONE, KILLED, STOPPED, FAILED = map(Status, ("finished", "running", "stopped", "failed"))
OTHER = "other/checkpoints/step-00000001"


@pytest.mark.parametrize(
    ("runs", "resume", "restarted", "name", "step"),
    [
        ([], "auto", False, "mine", None),
        ([(KILLED, 2)], "auto", False, "mine", 2),
        ([(STOPPED, 2)], "auto", False, "mine", 2),
        ([(FAILED, 2)], "auto", False, "mine", 2),
        ([(KILLED, 0)], "auto", False, "mine-2", None),
        ([(DONE, 2)], "auto", False, "mine-2", None),
        ([(DONE, 2), (STOPPED, 1)], "auto", False, "mine-2", 1),
        ([(STOPPED, 2), (DONE, 1)], "auto", False, "mine-3", None),
        ([(STOPPED, 2)], "never", False, "mine-2", None),
        ([(STOPPED, 2)], "never", True, "mine-2", None),  # of another job
        ([(Status("failed", "job"), 2)], "never", True, "mine", 2),
        ([(Status("running", "job"), 0)], "auto", True, "mine", None),
        ([(Status("finished", "job"), 2)], "auto", True, "mine", 2),
        ([], "other", False, "mine", 2),
        ([], OTHER, False, "mine", 1),
        ([(STOPPED, 4)], "other", False, "mine-2", 2),
        ([(Status("stopped", None, "other"), 4)], "other", False, "mine", 4),
        ([(Status("stopped", None, "other"), 4)], "auto", False, "mine-2", None),
    ],
)  # fmt: skip
def test_which_run_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runs: list[tuple[Status, int]],
    resume: str,
    restarted: bool,
    name: str,
    step: int | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    if restarted:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for status, steps in runs:
        earlier(tmp_path / "mine", status, steps)
    earlier(tmp_path / "other", DONE, 2)
    here = claim(config_in(tmp_path, resume), (), print)
    with here.folder:
        newest = next(iter(here.start_from), None)
        assert here.folder.path.name == name
        assert (newest and int(newest.name.removeprefix("step-"))) == step
        assert here.goes_on == (step is not None and newest.parents[1] == here.folder.path)


@pytest.mark.parametrize("restarted", [False, True])
def test_overwriting_is_for_the_first_start_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(int(restarted)))
    earlier(tmp_path / "mine", Status("running", "job"), 2)
    with (here := claim(config_in(tmp_path, overwrite=True), (), print)).folder:
        assert here.goes_on == restarted
        here.take("")
    assert (tmp_path / "mine/checkpoints").exists() == restarted


def test_an_unfinished_run_that_still_runs_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.run.claim._ENDING", 0.5)
    earlier(tmp_path / "mine", KILLED, 2)
    said: list[str] = []
    with RunFolder(tmp_path / "mine", overwrite=True):
        with pytest.raises(RunError, match=r"mine/\.lock: is locked by process .*resume to never"):
            claim(config_in(tmp_path), (), said.append)
        ending = threading.Timer(0.3, lambda: (tmp_path / "mine/.lock").unlink())
        ending.start()
        with claim(config_in(tmp_path), (), said.append).folder as folder:
            assert folder.path.name == "mine"
    assert len(said) == 2 and "waiting" in said[0]


def test_what_is_no_folder_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"checkpoint\.resume: .* is no folder"):
        claim(config_in(tmp_path, "yes"), (), print)

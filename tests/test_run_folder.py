"""The folder of a run: whose it is, its name, and that nothing in it or beside it is lost."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trees import tree
from trainer.config.schema import Config
from trainer.errors import ConfigError, RunError
from trainer.io.folder_lock import FolderLock
from trainer.report.json_lines import JsonLines
from trainer.run.folder import LOCK, MARKER, PREVIOUS, RunFolder
from trainer.run.inputs import require_inputs_outside


@pytest.fixture
def wanted(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "mine"


def checkpoint(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(content)
    return folder


def run_in(path: Path, weights: str | None = "good") -> None:
    """A run that has come to its end."""
    with RunFolder(path, overwrite=True) as folder:
        folder.take_over("steps: 1")
        (path / "metrics.jsonl").write_text("{}\n")
        if weights is not None:
            checkpoint(folder.weights(), weights)
            assert folder.saved(keep_previous=False) == ""


def foreign(path: Path) -> None:
    checkpoint(path / "checkpoints", "of another program")
    (path / "config.yaml").write_text("of: another")
    (path / "metrics.jsonl").write_text("{}\n")


def marked(path: Path, mark: Callable[[Path], object]) -> None:
    foreign(path)
    mark(path / MARKER)


def copied_marker(path: Path) -> Path:
    run_in(path.with_name("other"))
    return path.with_name("other") / MARKER


NOT_OURS: dict[str, Callable[[Path], object]] = {
    "another program's": foreign,
    "empty": lambda p: p.mkdir(parents=True),
    "marker of others": lambda p: marked(p, lambda m: m.write_text("of another program")),
    "marker is a link": lambda p: marked(p, lambda m: m.symlink_to(copied_marker(p))),
    "marker has two names": lambda p: marked(p, lambda m: m.hardlink_to(copied_marker(p))),
    "marker is a folder": lambda p: marked(p, lambda m: m.mkdir()),
    "marker is a FIFO": lambda p: marked(p, lambda m: os.mkfifo(m)),
    "a file": lambda p: (p.parent.mkdir(), p.write_text("text")),
    "a link to a run folder": lambda p: (copied_marker(p), p.symlink_to("other")),
    "a link to nothing": lambda p: (p.parent.mkdir(), p.symlink_to("nowhere")),
}


@pytest.mark.parametrize("case", NOT_OURS)
def test_what_no_run_made_is_neither_replaced_nor_added_to(wanted: Path, case: str) -> None:
    NOT_OURS[case](wanted)
    before = tree(wanted.parent)
    with pytest.raises(RunError) as caught:
        RunFolder(wanted, overwrite=True)
    line = str(caught.value)
    assert str(wanted) in line and "run.overwrite" in line and "\n" not in line
    assert tree(wanted.parent) == before
    with RunFolder(wanted, overwrite=False) as folder:
        assert folder.path == wanted.with_name("mine-2")
    assert tree(wanted.parent) == before


def test_a_used_name_gets_the_next_number(wanted: Path) -> None:
    run_in(wanted)
    before = tree(wanted)
    folders = [RunFolder(wanted, overwrite=False) for _ in range(2)]  # at one time
    assert [folder.path.name for folder in folders] == ["mine-2", "mine-3"]
    with pytest.raises(RunError, match=r"mine-3 is in use .* process \d+ on"):
        RunFolder(folders[1].path, overwrite=True)
    assert tree(wanted) == before


def test_two_starts_at_one_moment_have_two_folders(
    wanted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = []
    mkdir = Path.mkdir

    def second(path: Path, *arguments: object, **options: object) -> None:
        if path.name == "mine" and not others:
            others.append(None)
            others[0] = RunFolder(wanted, overwrite)
        mkdir(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", second)
    for overwrite in (False, True):
        others.clear()
        shutil.rmtree(wanted.parent, ignore_errors=True)
        mine = RunFolder(wanted, overwrite)
        assert (others[0].path.name, mine.path.name) == ("mine", "mine-2")


@pytest.mark.parametrize("link", [False, True])
def test_old_weights_stay_until_there_are_new_ones(
    wanted: Path, tmp_path: Path, link: bool
) -> None:
    """Links in the folder go, what they lead to stays."""
    outside = checkpoint(tmp_path / "outside", "old")
    run_in(wanted, None if link else "old")
    (wanted / "notes").symlink_to(outside)
    (wanted / "config.yaml").unlink()
    for name in ("config.yaml", ".config.yaml.new"):
        (wanted / name).symlink_to(outside / "config.json")
    if link:
        (wanted / "weights").symlink_to(outside)
    for _ in range(2):  # the second replaces one that failed before it had weights
        with RunFolder(wanted, overwrite=True) as folder:
            folder.take_over("steps: 2")
            assert folder.previous_weights() == wanted / PREVIOUS
    assert (wanted / PREVIOUS / "config.json").read_text() == "old"
    assert {path.name for path in wanted.iterdir()} == {"config.yaml", PREVIOUS, MARKER}
    assert (wanted / "config.yaml").read_text() == "steps: 2"
    (wanted / "weights").mkdir()  # not a whole checkpoint: takes no one's place
    with RunFolder(wanted, overwrite=True) as folder:
        folder.take_over("steps: 3")
        assert (wanted / PREVIOUS / "config.json").read_text() == "old"
        checkpoint(folder.weights(), "new")
        assert folder.saved(keep_previous=True) == "" and folder.previous_weights()
        assert folder.saved(keep_previous=False) == "" and not folder.previous_weights()
    assert tree(outside) == {"config.json": b"old"}
    run_in(wanted, "newer")
    assert (wanted / "weights/config.json").read_text() == "newer"
    assert not (wanted / PREVIOUS).exists()


def test_weights_aside_that_cannot_be_removed_are_no_failure(
    wanted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in(wanted)
    folder = RunFolder(wanted, overwrite=True)
    folder.take_over("")

    def refuse(path: Path) -> None:
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    assert f"cannot remove {wanted / PREVIOUS}: busy" in folder.saved(keep_previous=False)


def full(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_at_the_start_changes_nothing(
    wanted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in(wanted)
    before = tree(wanted.parent)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"run\.dir.*mine.*No space left") as caught:
        RunFolder(wanted, overwrite=False)
    assert "\n" not in str(caught.value) and tree(wanted.parent) == before
    with RunFolder(wanted, overwrite=True) as folder, pytest.raises(RunError, match="No space"):
        folder.take_over("steps: 2")
    assert tree(wanted.parent) == before


@pytest.mark.parametrize("place", ["/proc/nowhere", "/sys/kernel/x", "a file", "a link to nothing"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "a file").write_text("")
    (tmp_path / "a link to nothing").symlink_to("/proc/nowhere")
    for overwrite in (False, True):
        with pytest.raises(RunError, match=r"run\.dir: cannot make .*/mine: ") as caught:
            RunFolder(tmp_path / place / "mine", overwrite)
        assert "\n" not in str(caught.value)


def test_a_start_that_is_refused_leaves_no_folder(wanted: Path) -> None:
    with pytest.raises(RunError), RunFolder(wanted, overwrite=False) as folder:
        folder.take_over("steps: 1")
        (wanted / "metrics.jsonl").touch()
        raise RunError("no weights")
    assert not wanted.exists()
    with RunFolder(wanted, overwrite=False):
        (wanted / "notes.txt").write_text("of the user")
    with RunFolder(wanted.with_name("other"), overwrite=False) as folder:
        folder.take_over("steps: 1")
        (folder.path / "metrics.jsonl").write_text("{}\n")
    assert tree(wanted.parent).keys() >= {"mine/notes.txt", "other/config.yaml", "other/" + MARKER}
    run_in(wanted.with_name("other"))  # still a run folder
    with RunFolder(wanted.with_name("other"), overwrite=True):
        pass
    assert (wanted.with_name("other") / "weights/config.json").exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_removed_during_the_run_loses_no_weights(wanted: Path, replaced: bool) -> None:
    """They go to a new one, not into that of a run which has the name now."""
    folder = RunFolder(wanted, overwrite=False)
    folder.take_over("steps: 1")
    shutil.rmtree(wanted.parent)
    other = RunFolder(wanted, overwrite=False) if replaced else None
    weights = folder.weights()
    assert weights == wanted.with_name("mine-2" if replaced else "mine") / "weights"
    assert (weights.parent / "config.yaml").read_text() == "steps: 1"
    assert (weights.parent / MARKER).exists() and folder.weights() == weights
    assert f"as {wanted} was removed" in folder.saved(keep_previous=False)
    assert other is None or {path.name for path in wanted.iterdir()} == {MARKER, LOCK}


def test_a_run_that_is_over_makes_no_folder(wanted: Path) -> None:
    """A checkpoint that another thread still saves would lock the name of a later run."""
    with RunFolder(wanted, overwrite=False) as folder:
        (folder.path / "metrics.jsonl").write_text("a line")
    with pytest.raises(RunError, match="is over"):
        folder.place()
    RunFolder(wanted, overwrite=True)


def no_file(case: str, path: Path, target: Path) -> None:
    {
        "link": lambda: path.symlink_to(target),
        "link to nothing": lambda: path.symlink_to(target.with_name("nowhere")),
        "second name": lambda: path.hardlink_to(target),
        "folder": lambda: path.mkdir(),
        "FIFO": lambda: os.mkfifo(path),
    }[case]()


@pytest.mark.parametrize("case", ["link", "link to nothing", "second name", "folder", "FIFO"])
def test_a_lock_or_metrics_that_is_no_file_of_ours_is_one_line_and_untouched(
    wanted: Path, tmp_path: Path, case: str
) -> None:
    run_in(wanted)
    target = tmp_path / "target"
    target.write_text("precious")
    no_file(case, wanted / LOCK, target)
    before = tree(tmp_path)
    for claim in (lambda: FolderLock(wanted / LOCK), lambda: RunFolder(wanted, overwrite=True)):
        with pytest.raises(RunError, match=r"/\.lock: is a link, a folder or a FIFO") as caught:
            claim()
        assert "\n" not in str(caught.value) and tree(tmp_path) == before

    folder = RunFolder(wanted, overwrite=False)
    no_file(case, folder.path / "metrics.jsonl", target)
    with pytest.raises(RunError, match="cannot write"):
        JsonLines(folder.path)
    assert target.read_text() == "precious" and not target.with_name("nowhere").exists()


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o027, 0o077])
def test_modes_are_those_of_the_umask(wanted: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        run_in(wanted)
        JsonLines(RunFolder(wanted, overwrite=False).path)
    finally:
        os.umask(before)
    for path in wanted.parent.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


INPUTS: dict[str, Callable[[Config, str], object]] = {
    "data.path": lambda c, path: setattr(c.data, "path", path),
    "data.tokenizer": lambda c, path: setattr(c.data, "tokenizer", path),
    "model.init_from": lambda c, path: setattr(c.model, "init_from", path),
    "pipeline.schedule_file": lambda c, path: setattr(c.pipeline, "schedule_file", path),
    "--config": lambda c, path: None,
}
WAYS = {
    "in it": "runs/mine/text",
    "the folder itself": "runs/mine",
    "a link to it": "into",
    "a folder with a link to it": "folder",
    "a link in it": "runs/mine/out",
    "below a link to the folder": "mine/text",
    "outside": "text",
    "beside": "runs/mine-2",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("key", INPUTS)
def test_a_run_does_not_replace_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, way: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/mine", "runs/mine-2", "folder/below"):
        Path(folder).mkdir(parents=True)
    for file in ("runs/mine/text", "text", "folder/plain"):
        Path(file).write_text("text")
    for link, target in {
        "into": "runs/mine/text", "folder/below/link": "../../runs/mine/text", "mine": "runs/mine",
        "runs/mine/out": "../../text",
    }.items():  # fmt: skip
        Path(link).symlink_to(target)
    config = Config()
    INPUTS[key](config, WAYS[way])
    files = [WAYS[way]] if key == "--config" else []
    if way in ("outside", "beside"):
        require_inputs_outside(Path("runs/mine"), config, files)
        return
    with pytest.raises(ConfigError) as caught:
        require_inputs_outside(Path("runs/mine"), config, files)
    line = str(caught.value)
    assert f"{key} is {WAYS[way]}" in line and "\n" not in line and caught.value.exit_code == 2

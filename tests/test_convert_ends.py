"""How a conversion ends: places that are refused, interruptions, kills, a full disk."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launch.convert import main
from tests.commands import ROOT
from tests.conversions import EXPERT, digests, run
from tests.trees import tree
from trainer.checkpoint.hf import writer
from trainer.checkpoint.hf.conversion import plan_conversion
from trainer.checkpoint.hf.convert import convert
from trainer.checkpoint.hf.output_folder import OutputFolder, scratch
from trainer.checkpoint.hf.reader import Checkpoint
from trainer.errors import Stopped


def test_places_that_are_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(source)
    for target, word in {
        source: "outside", source / "inside": "outside", tmp_path: "outside",
        tmp_path / "link": "outside", tmp_path / "other": "not a checkpoint",
    }.items():  # fmt: skip
        assert main([str(source), str(target), "--overwrite"]) == 1
        assert word in capsys.readouterr().err
    run(source, tmp_path / "target")
    before = digests(tmp_path / "target")
    assert main([str(source), str(tmp_path / "target"), "--dtype", "bfloat16"]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert digests(tmp_path / "target") == before
    run(source, tmp_path / "target", "--dtype", "bfloat16", "--overwrite")
    assert Checkpoint(tmp_path / "target").dtype(EXPERT) == torch.bfloat16

    kept = scratch(tmp_path / "new") / "old"
    shutil.copytree(source, kept)
    assert main([str(kept), str(tmp_path / "new")]) == 1
    assert "move it first" in capsys.readouterr().err and digests(kept) == digests(source)

    room = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert main([str(source), str(tmp_path / "large")]) == 1
    assert "but" in capsys.readouterr().err
    # What a killed conversion left makes room.
    (scratch(tmp_path / "large") / "new").mkdir(parents=True)
    (scratch(tmp_path / "large") / "new" / "shard").write_bytes(b"0" * room)
    run(source, tmp_path / "large")


def test_links_out_of_the_source_are_not_followed(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret").write_text("secret")
    for name in ("tokenizer.model", "LICENSE-OF-OTHERS"):
        (source / name).symlink_to("../secret")
        assert main([str(source), str(tmp_path / "target")]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"convert: {source / name}: is a link to {tmp_path / 'secret'}")
        (source / name).unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret", "source"]


@pytest.mark.parametrize("case", ["the hidden folder", "its new content", "its lock", "the target"])
def test_links_where_a_conversion_writes_are_not_followed(
    source: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target"
    precious = Path(shutil.copytree(source, tmp_path / "precious"))
    (precious / "new").mkdir()
    (precious / "new" / "file").write_text("precious")
    before = tree(precious)
    link, leads_to, refused = {
        "the hidden folder": (scratch(target), precious, True),
        "its new content": (scratch(target) / "new", precious / "new", False),
        "its lock": (scratch(target) / "lock", precious / "config.json", True),
        "the target": (target, precious, False),
    }[case]
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(leads_to)
    if refused:
        assert main([str(source), str(target)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert str(link) in line and "remove it" in line
        assert not target.exists() and tree(precious) == before
        return
    with OutputFolder(target) as output:
        (output.partial / "config.json").write_text("{}")
        output.commit()
    assert tree(target) == {"config.json": b"{}"} and tree(precious) == before
    assert not scratch(target).exists()


def test_folders_of_other_people_are_not_touched(source: Path, tmp_path: Path) -> None:
    mine = ("target.old", "target.partial", ".target.old", ".target.partial")
    for name in mine:
        shutil.copytree(source, tmp_path / name)
    before = digests(source)
    run(tmp_path / "target.old", tmp_path / "target")
    run(tmp_path / "target.old", tmp_path / "target", "--overwrite")
    run(tmp_path / "target.partial", tmp_path / "target", "--overwrite", "--dtype", "float32")
    assert all(digests(tmp_path / name) == before for name in mine)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((*mine, "source", "target"))


def test_a_second_conversion_to_a_place_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = OutputFolder(tmp_path / "target")
    (first.partial / "half.safetensors").write_text("")
    assert main([str(source), str(tmp_path / "target")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "is being written by process" in line and str(tmp_path / "target") in line
    assert (first.partial / "half.safetensors").exists()
    first.discard()
    run(source, tmp_path / "target")


def test_ctrl_c_leaves_what_was_there(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def interrupt(done: int, total: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    target = tmp_path / "target"
    conversion = plan_conversion(Checkpoint(source), "bfloat16", without_mtp=False)
    for before in ([], ["target"]):
        left = 200
        with pytest.raises(Stopped, match="nothing written"):
            convert(conversion, target, interrupt)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["source", *before]
        run(source, target, "--overwrite")
    assert digests(target) == digests(source)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "save_file", stop)
    assert main([str(source), str(tmp_path / "other"), "--dtype", "float32"]) == 130
    assert "nothing written" in capsys.readouterr().err


def test_ctrl_c_in_the_last_moment_leaves_the_new_one_and_says_so(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def interrupted(path: Path, **options: bool) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    target = tmp_path / "target"
    run(source, target, "--dtype", "float32")
    capsys.readouterr()
    monkeypatch.setattr(shutil, "rmtree", interrupted)
    assert main([str(source), str(target), "--overwrite"]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"convert: stopped by Ctrl-C, {target} is written and whole"
    assert digests(target) == digests(source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


ENDED = """
import os, sys
from launch.convert import main
from trainer.checkpoint.hf import writer

def end_in_the_second(path, tensors):
    global files
    files += 1
    if files == 2:
        os.kill(os.getpid(), number)
    write(path, tensors)

number, files, write = int(sys.argv[1]), 0, writer.write_shard
writer.write_shard = end_in_the_second
sys.exit(main(sys.argv[2:]))
"""


def end(number: signal.Signals, *arguments: object) -> int:
    """The exit code of a conversion that sends itself this signal when it writes."""
    words = [str(int(number)), *map(str, arguments), "--dtype", "float32"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", ENDED, *words], env=environment, timeout=90
    ).returncode


def test_a_kill_leaves_no_folder_that_looks_whole(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    assert end(signal.SIGKILL, source, target) == -signal.SIGKILL
    assert not target.exists()
    begun = scratch(target) / "new"
    assert begun.exists() and not (begun / "config.json").exists()
    (begun / "model-of-another-source.safetensors").write_text("")
    run(source, target)
    assert digests(target) == digests(source) and not scratch(target).exists()


def test_sigterm_leaves_what_was_there(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "target")
    assert end(signal.SIGTERM, source, tmp_path / "target", "--overwrite") == 143
    assert digests(tmp_path / "target") == digests(source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(source, tmp_path / "target")
    capsys.readouterr()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))  # a file that cannot grow
    try:
        code = main([str(source), str(tmp_path / "target"), "--dtype", "float32", "--overwrite"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 1 and line.startswith("convert: cannot write") and "large" in line
    assert digests(tmp_path / "target") == digests(source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]

"""Conversion of checkpoints: what comes out, and that nothing does when something is wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from launch import convert as command
from launch.convert import main
from tests.commands import ROOT
from tests.synthetic_checkpoint import TOY, TOY_SHARD, make_checkpoint, tensors_of
from trainer.hf.architecture import model_from_hf
from trainer.hf.convert import convert
from trainer.hf.output_folder import OutputFolder, scratch
from trainer.hf.plan import make_plan
from trainer.hf.reader import INDEX, Checkpoint, Stored
from trainer.parse import config_parser, parse

FP8 = torch.float8_e4m3fn


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As released, in fp8."""
    folder = tmp_path_factory.mktemp("synthetic") / "released"
    make_checkpoint(folder, TOY, TOY_SHARD)
    return folder


@pytest.fixture
def source(released: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(released, tmp_path / "source"))


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.suffix != ".py"
    }


def stored(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def values(folder: Path) -> dict[str, Tensor]:
    """Every weight in float32, without the code that is tested."""
    tensors = stored(folder)
    found = {}
    for name, tensor in tensors.items():
        if name + "_scale_inv" in tensors:
            rows, columns = (torch.arange(length) // 128 for length in tensor.shape)
            found[name] = tensor.float() * tensors[name + "_scale_inv"][rows][:, columns]
        elif not name.endswith("_scale_inv"):
            found[name] = tensor.float()
    return found


def test_a_released_checkpoint_comes_back_byte_for_byte(released: Path, tmp_path: Path) -> None:
    files = json.loads((released / INDEX).read_text())["weight_map"]
    assert any(file != files.get(f"{name}_scale_inv", file) for name, file in files.items())
    wanted = digests(released)
    run(released, tmp_path / "float32", "--dtype", "float32")
    ours, theirs = stored(tmp_path / "float32"), values(released)
    assert {name: tensor.dtype for name, tensor in ours.items()} == dict.fromkeys(
        theirs, torch.float32
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    config = json.loads((tmp_path / "float32" / "config.json").read_text())
    assert config["torch_dtype"] == "float32" and "quantization_config" not in config
    run(tmp_path / "float32", tmp_path / "fp8", "--dtype", "fp8")
    assert digests(tmp_path / "fp8") == wanted
    for dtype in ("keep", "fp8"):
        run(released, tmp_path / dtype, "--dtype", dtype, "--overwrite")
        assert digests(tmp_path / dtype) == wanted
        assert not (tmp_path / dtype / "modeling_deepseek.py").exists()
    run(tmp_path / "float32", tmp_path / "again", "--dtype", "float32")
    assert digests(tmp_path / "again") == digests(tmp_path / "float32")


def test_types_of_a_checkpoint_in_bfloat16_and_back(released: Path, tmp_path: Path) -> None:
    run(released, tmp_path / "bf16", "--dtype", "bfloat16")
    exact, rounded = values(released), stored(tmp_path / "bf16")
    for name, _, dtype in tensors_of(TOY):
        wanted = torch.float32 if dtype == torch.float32 else torch.bfloat16
        assert rounded[name].dtype == wanted
        assert torch.equal(rounded[name], exact[name].to(wanted)), name
    index = json.loads((tmp_path / "bf16" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in rounded.values())
    assert list(index["weight_map"]) == [name for name, _, _ in tensors_of(TOY)]

    run(tmp_path / "bf16", tmp_path / "fp8", "--dtype", "fp8")
    ours, theirs = stored(tmp_path / "fp8"), stored(released)
    assert {n: (t.dtype, t.shape) for n, t in ours.items()} == {
        n: (t.dtype, t.shape) for n, t in theirs.items()
    }
    for name, value in values(tmp_path / "fp8").items():
        # Half of the coarsest step, 32 of 448, and what bfloat16 and the scale rounded before.
        assert (value - exact[name]).abs().max() <= exact[name].abs().max() * 17 / 448, name


def test_without_mtp_the_model_is_left(released: Path, tmp_path: Path) -> None:
    run(released, tmp_path / "short", "--without-mtp")
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    assert config == TOY | {"num_nextn_predict_layers": 0}
    main_model = {name for name in stored(released) if not name.startswith("model.layers.5.")}
    ours, theirs = stored(tmp_path / "short"), stored(released)
    assert set(ours) == main_model == set(Checkpoint(tmp_path / "short").files)
    assert all(torch.equal(ours[n].view(torch.uint8), theirs[n].view(torch.uint8)) for n in ours)
    # Also where one file holds both.
    (tmp_path / "one").mkdir()
    shutil.copyfile(released / "config.json", tmp_path / "one" / "config.json")
    save_file(theirs, tmp_path / "one" / "model.safetensors")
    run(tmp_path / "one", tmp_path / "less", "--without-mtp")
    assert set(stored(tmp_path / "less")) == main_model
    # A checkpoint that only says that it has MTP, as transformers writes it, can be read as well.
    (tmp_path / "short" / "config.json").write_text(json.dumps(TOY | {"auto_map": {"a": "b.c"}}))
    run(tmp_path / "short", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config


def test_tokenizer_and_licence_go_along(released: Path, tmp_path: Path) -> None:
    run(released, tmp_path / "copy", "--dtype", "bfloat16")
    for name in ("tokenizer_config.json", "generation_config.json", "LICENSE-MODEL"):
        assert (tmp_path / "copy" / name).read_bytes() == (released / name).read_bytes()


def rewrite(folder: Path, name: str, change: Callable[[Tensor], Tensor | None]) -> str:
    """Change a tensor in its file, or leave it out; the file."""
    file = json.loads((folder / INDEX).read_text())["weight_map"][name]
    tensors = load_file(folder / file)
    changed = change(tensors.pop(name))
    save_file(tensors | ({} if changed is None else {name: changed}), folder / file)
    return str(file)


GATE = "model.layers.4.mlp.gate.weight"
EXPERT = "model.layers.5.mlp.experts.15.down_proj.weight"
WRONG: dict[str, tuple[str, Callable[[Tensor], Tensor | None], str]] = {
    "missing": (EXPERT, lambda _: None, "[192, 64]"),
    "shape": (GATE, lambda t: t[:-1].clone(), "[15, 192]"),
    "scale": (EXPERT + "_scale_inv", lambda _: None, "[2, 1]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_tensor_is_named_and_nothing_is_written(
    source: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, change, words = WRONG[case]
    file = rewrite(source, name, change)
    before = sorted(source.parent.iterdir())
    assert main([str(source), str(source.parent / "target"), "--dtype", "bfloat16"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("convert: ") and file in line and name in line and words in line
    assert sorted(source.parent.iterdir()) == before


def test_what_fp8_cannot_hold_is_named(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(source, tmp_path / "bf16", "--dtype", "bfloat16")
    file = rewrite(tmp_path / "bf16", EXPERT, lambda t: t.index_fill(0, torch.tensor(3), torch.nan))
    before = sorted(tmp_path.iterdir())
    assert main([str(tmp_path / "bf16"), str(tmp_path / "target"), "--dtype", "fp8"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert file in line and EXPERT in line and "not finite" in line
    assert sorted(tmp_path.iterdir()) == before


def test_places_that_are_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(source)
    for target, word in {
        source: "outside", source / "inside": "outside", tmp_path: "outside",
        tmp_path / "link": "outside", tmp_path / "other": "no checkpoint",
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
    assert "0.0 GB left" in capsys.readouterr().err
    # What a killed conversion left makes room.
    (scratch(tmp_path / "large") / "new").mkdir(parents=True)
    (scratch(tmp_path / "large") / "new" / "shard").write_bytes(b"0" * room)
    run(source, tmp_path / "large")


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


def test_work_grows_with_the_tensors_only(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counted(dict[str, str]):
        walks = 0

        def items(self):  # type: ignore[no-untyped-def]
            Counted.walks += 1
            return super().items()

        def values(self):  # type: ignore[no-untyped-def]
            Counted.walks += 1
            return super().values()

    def counted(stored: Stored) -> int:
        nonlocal sizes
        sizes += 1
        return size(stored)

    size, sizes = Stored.nbytes.fget, 0
    plan = make_plan(Checkpoint(source), "bfloat16", without_mtp=False)
    tensors, files = len(plan.tensors), len(plan.by_file())
    plan = dataclasses.replace(plan, files=Counted(plan.files))
    monkeypatch.setattr(Stored, "nbytes", property(counted))
    convert(plan, tmp_path / "target", lambda done, total: None)
    assert sizes <= 3 * tensors and Counted.walks < files, (sizes, tensors, Counted.walks, files)


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
    plan = make_plan(Checkpoint(source), "bfloat16", without_mtp=False)
    for before in ([], ["target"]):
        left = 200
        with pytest.raises(KeyboardInterrupt):
            convert(plan, target, interrupt)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["source", *before]
        run(source, target, "--overwrite")
    assert digests(target) == digests(source)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "convert", stop)
    assert main([str(source), str(tmp_path / "other")]) == 130
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
import os, runpy, sys
from trainer.hf import writer

def end_in_the_second(path, tensors):
    global files
    files += 1
    if files == 2:
        os.kill(os.getpid(), number)
    write(path, tensors)

number, files, write = int(sys.argv.pop(1)), 0, writer.write_shard
writer.write_shard = end_in_the_second
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def end(number: signal.Signals, *arguments: object) -> int:
    """The exit code of a conversion that sends itself this signal when it writes."""
    script = str(ROOT / "launch" / "convert.py")
    words = [str(int(number)), script, *map(str, arguments), "--dtype", "float32"]
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


def test_check_describes_and_says_what_is_wrong(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(source, "--check", "--json")
    found = json.loads(capsys.readouterr().out)
    sizes: dict[torch.dtype, int] = {}
    for tensor in stored(source).values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    assert found["bytes_by_type"] == {
        str(dtype).removeprefix("torch."): size for dtype, size in sizes.items()
    }
    copies = {"model.layers.5.embed_tokens.weight", "model.layers.5.shared_head.head.weight"}
    counts = {n: t.numel() for n, t in values(source).items() if n not in copies}
    mtp = sum(count for name, count in counts.items() if name.startswith("model.layers.5."))
    assert found["mtp_parameters"] == mtp and found["mtp_depth"] == 1
    assert found["parameters"] == sum(counts.values()) - mtp
    assert found["problem"] is None and found["tensors"] == len(stored(source))

    run(source, "--check")
    assert f"{found['parameters']:,}" in capsys.readouterr().out
    rewrite(source, GATE, lambda _: None)
    assert main([str(source), "--check"]) == 1
    assert GATE in capsys.readouterr().out
    (source / "config.json").write_text(json.dumps(TOY | {"hidden_act": "gelu"}))
    assert main([str(source), "--check"]) == 1
    assert "hidden_act" in capsys.readouterr().out


def test_the_printed_config_trains_this_model(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(released, "--print-config")
    (tmp_path / "run.yaml").write_text(capsys.readouterr().out)
    config, _ = parse(config_parser("train", "", ""), ["--config", str(tmp_path / "run.yaml")])
    wanted = model_from_hf(TOY, "config.json")
    wanted.init_from = str(released)
    assert config.model == wanted


def test_wrong_arguments_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments in ([], ["a"], ["a", "b", "--check"], ["a", "b", "--dtype", "int4"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "b")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_size_that_its_files_cannot_have_is_refused_at_once(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after the memory for a model of that size has been asked for."""
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    config = json.loads((copy / "config.json").read_text())
    for key in ("num_hidden_layers", "n_routed_experts"):
        (copy / "config.json").write_text(json.dumps(config | {key: 10**9}))
        assert main([str(copy), "--check"]) == 1
        assert key in capsys.readouterr().out

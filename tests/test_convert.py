"""Conversion of checkpoints: what comes out, and what is said of a source that is wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from launch.convert import main
from tests.conversions import EXPERT, digests, run
from tests.synthetic_checkpoint import TOY, tensors_of
from trainer.checkpoint.hf.architecture import model_from_hf
from trainer.checkpoint.hf.conversion import plan_conversion
from trainer.checkpoint.hf.convert import convert
from trainer.checkpoint.hf.reader import INDEX, Checkpoint, Stored
from trainer.config.parse import config_parser, parse

FP8 = torch.float8_e4m3fn


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
    conversion = plan_conversion(Checkpoint(source), "bfloat16", without_mtp=False)
    tensors, files = len(conversion.tensors), len(conversion.by_file())
    conversion = dataclasses.replace(conversion, files=Counted(conversion.files))
    monkeypatch.setattr(Stored, "nbytes", property(counted))
    convert(conversion, tmp_path / "target", lambda done, total: None)
    assert sizes <= 3 * tensors and Counted.walks < files, (sizes, tensors, Counted.walks, files)


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
    for unused in ("--dtype keep", "--overwrite", "--without-mtp"):
        for what in ("--check", "--print-config"):
            assert main(["a", what, *unused.split()]) == 2
            err = capsys.readouterr().err
            assert err.count("\n") == 1 and f"{unused.split()[0]} has no effect with {what}" in err
    assert main(["a", "--print-config", "--json"]) == 2
    assert "--json has no effect with --print-config" in capsys.readouterr().err
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

"""Checkpoint folders: what is read from them, what is said of broken ones, and how they are
written."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.synthetic_checkpoint import TOY, TOY_SHARD, make_checkpoint
from trainer.checkpoint.hf import writer
from trainer.checkpoint.hf.output_folder import OutputFolder, scratch
from trainer.checkpoint.hf.reader import INDEX, SINGLE, Checkpoint
from trainer.errors import CheckpointError

FP8 = torch.float8_e4m3fn
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHAPES = {"a.weight": (130, 5), "b.weight": (4,), "c.weight": (2, 3)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files: a in fp8 with its scale in the other file, b and c in bfloat16."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save(folder, FIRST, {"a.weight": torch.ones(130, 5).to(FP8), "b.weight": torch.ones(4)})
    scale = torch.tensor([[2.0], [3.0]])
    save(folder, SECOND, {"a.weight_scale_inv": scale, "c.weight": torch.ones(2, 3).bfloat16()})
    files = {"b.weight": FIRST, "a.weight": FIRST, "a.weight_scale_inv": SECOND, "c.weight": SECOND}
    save_index(folder, files)
    return folder


def save(folder: Path, file: str, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / file, metadata={"format": "pt"})


def save_index(folder: Path, files: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))


def index_of(folder: Path) -> dict[str, str]:
    files: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    return files


def test_what_is_stored_is_what_is_read(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "toy", TOY, TOY_SHARD)
    checkpoint, files = Checkpoint(tmp_path / "toy"), index_of(tmp_path / "toy")
    assert checkpoint.config == TOY and checkpoint.names() == list(files)
    stored: dict[str, Tensor] = {}
    for file in checkpoint.shards():
        stored |= load_file(tmp_path / "toy" / file)
    split = 0
    for name, tensor in stored.items():
        assert name in checkpoint and checkpoint.shape(name) == tuple(tensor.shape)
        assert checkpoint.dtype(name) == tensor.dtype
        size, values = tensor.nbytes, tensor
        scale = stored.get(name + "_scale_inv")
        if scale is not None:
            split += files[name] != files[name + "_scale_inv"]
            size += scale.nbytes
            rows, columns = (torch.arange(length) // 128 for length in tensor.shape)
            values = tensor.float() * scale[rows][:, columns]
            assert torch.equal(checkpoint.read(name, FP8).float(), tensor.float())
        assert checkpoint.nbytes(name) == size
        for dtype in (torch.float32, torch.bfloat16):
            assert torch.equal(checkpoint.read(name, dtype), values.to(dtype)), name
    assert split, "no scale is in another file than its weight: choose another TOY_SHARD"


def test_a_single_file_needs_no_index(folder: Path) -> None:
    tensors = load_file(folder / FIRST) | load_file(folder / SECOND)
    for path in folder.glob("model*"):
        path.unlink()
    save(folder, SINGLE, tensors)
    checkpoint = Checkpoint(folder)
    checkpoint.require(SHAPES)
    checkpoint.require_nothing_else(SHAPES)
    assert checkpoint.files == dict.fromkeys(checkpoint.names(), SINGLE)
    assert checkpoint.read("a.weight", torch.float32)[128:].eq(3).all()


def test_a_tensor_read_does_not_change_with_its_file(folder: Path) -> None:
    tensor = Checkpoint(folder).read("c.weight", torch.bfloat16)
    with open(folder / SECOND, "r+b") as file:
        file.seek(-12, 2)
        file.write(bytes(12))
    assert tensor.eq(1).all()


def drop(folder: Path, file: str) -> None:
    (folder / file).unlink()


def cut(folder: Path, file: str) -> None:
    (folder / file).write_bytes((folder / file).read_bytes()[:-7])


def only_pickles(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"")


OPENING: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no config": (lambda f: drop(f, "config.json"), ["config.json", "No such file"]),
    "bad config": (lambda f: (f / "config.json").write_text('{"a": '), ["config.json", "not JSON"]),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), ["config.json", "object"]),
    "bad index": (lambda f: (f / INDEX).write_bytes(b"\xff"), [INDEX, "not JSON"]),
    "empty index": (lambda f: save_index(f, {}), [INDEX, "weight_map"]),
    "index is a list": (lambda f: save_index(f, ["a.weight"]), [INDEX, "a.weight"]),
    "parent": (lambda f: save_index(f, {"a.weight": "../x.safetensors"}), [INDEX, "../x"]),
    "absolute": (lambda f: save_index(f, {"a.weight": "/x.safetensors"}), [INDEX, "'/x"]),
    "no shard": (lambda f: drop(f, SECOND), [SECOND, "no such file"]),
    "cut shard": (lambda f: cut(f, SECOND), [SECOND, "cut short", "bytes"]),
    "empty shard": (lambda f: (f / SECOND).write_bytes(b""), [SECOND, "cut short"]),
    "no safetensors": (lambda f: (f / SECOND).write_bytes(b"x" * 999), [SECOND, "cut short"]),
    "pickles": (only_pickles, ["pytorch_model-00001-of-00002.bin", "safetensors"]),
    "nothing": (lambda f: [drop(f, p.name) for p in f.glob("model*")], [INDEX, SINGLE]),
    "not in the index": (
        lambda f: save_index(f, {k: v for k, v in index_of(f).items() if k != "b.weight"}),
        [FIRST, "b.weight", "lacks"],
    ),
    "in another file": (
        lambda f: save_index(f, index_of(f) | {"b.weight": SECOND}), [FIRST, "b.weight", SECOND],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OPENING)
def test_a_broken_folder_is_one_line_that_says_where(folder: Path, case: str) -> None:
    change, words = OPENING[case]
    change(folder)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(folder)
    assert_says(caught.value, [str(folder), *words])


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: there is no such folder"):
        Checkpoint(tmp_path / "nowhere")


def assert_says(error: CheckpointError, words: list[str]) -> None:
    line = str(error)
    assert "\n" not in line and all(word in line for word in words), line


def replace(file: str, **tensors: Tensor | None) -> Callable[[Path], None]:
    """Put other tensors into a file; None takes one out."""

    def change(folder: Path) -> None:
        given = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
        merged = load_file(folder / file) | given
        save(folder, file, {name: t for name, t in merged.items() if t is not None})

    return change


def forget(folder: Path) -> None:
    replace(SECOND, c__weight=None)(folder)
    save_index(folder, {k: v for k, v in index_of(folder).items() if k != "c.weight"})


REQUIRED: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "named but missing": (
        replace(SECOND, c__weight=None), [SECOND, "c.weight is missing", "[2, 3]", INDEX],
    ),
    "missing": (forget, ["c.weight is missing", "[2, 3]"]),
    "shape": (
        replace(SECOND, c__weight=torch.ones(3, 2)), [SECOND, "c.weight", "[3, 2]", "[2, 3]"],
    ),
    "no scale": (
        replace(SECOND, a__weight_scale_inv=None), [SECOND, "a.weight_scale_inv", "[2, 1]"],
    ),
    "shape of scale": (
        replace(SECOND, a__weight_scale_inv=torch.ones(1, 2)),
        [SECOND, "a.weight_scale_inv", "[1, 2]", "[2, 1]"],
    ),
    "type of scale": (
        replace(SECOND, a__weight_scale_inv=torch.ones(2, 1).bfloat16()),
        [SECOND, "a.weight_scale_inv", "bfloat16", "float32"],
    ),
    "no float": (
        replace(SECOND, c__weight=torch.ones(2, 3).int()), [SECOND, "c.weight", "int32"],
    ),
    "fp8 vector": (replace(FIRST, b__weight=torch.ones(4).to(FP8)), [FIRST, "b.weight", "matrix"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REQUIRED)
def test_a_tensor_that_does_not_fit_is_named_with_its_file(folder: Path, case: str) -> None:
    Checkpoint(folder).require(SHAPES)
    change, words = REQUIRED[case]
    change(folder)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(folder).require(SHAPES)
    assert_says(caught.value, [str(folder), *words])


def test_a_tensor_too_many_is_an_error_but_for_what_nobody_reads(folder: Path) -> None:
    Checkpoint(folder).require_nothing_else(SHAPES)
    with pytest.raises(CheckpointError, match=r"c\.weight has no place"):
        Checkpoint(folder).require_nothing_else({k: SHAPES[k] for k in ("a.weight", "b.weight")})
    inv_freq = "model.layers.0.self_attn.rotary_emb.inv_freq"
    replace(FIRST, **{inv_freq: torch.ones(2)})(folder)
    Checkpoint(folder).require_nothing_else(SHAPES)
    save_index(folder, index_of(folder) | {inv_freq: FIRST})
    Checkpoint(folder).require_nothing_else(SHAPES)
    # A scale belongs to a weight in fp8 only.
    replace(FIRST, a__weight=torch.ones(130, 5))(folder)
    with pytest.raises(CheckpointError, match=r"a\.weight_scale_inv has no place"):
        Checkpoint(folder).require_nothing_else(SHAPES)


def test_shards_are_filled_in_order() -> None:
    sizes = {"a": 3, "b": 4, "c": 3, "d": 11, "e": 1, "f": 9}
    assert writer.split_into_shards(sizes, 10) == [["a", "b", "c"], ["d"], ["e", "f"]]
    assert writer.split_into_shards({}, 10) == []
    assert writer.shard_file(2, 163) == "model-00002-of-00163.safetensors"


def write(folder: Path, value: float) -> None:
    with OutputFolder(folder) as output:
        writer.write_shard(output.partial / FIRST, {"a": torch.full((3,), value)})
        writer.write_index(output.partial, {"a": FIRST}, 12)
        writer.write_json(output.partial / "config.json", {})
        output.commit()


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "checkpoint"
    for value in (1.0, 2.0):
        write(folder, value)
        (folder / "old.txt").write_text("of the first")
        assert Checkpoint(folder).read("a", torch.float32).eq(value).all()
    assert Checkpoint(folder).metadata == {"total_size": 12}
    write(folder, 3.0)
    assert not (folder / "old.txt").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_modes_are_those_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "checkpoint", 1.0)
        writer.copy_file(tmp_path / "checkpoint" / FIRST, tmp_path / "checkpoint" / "copy")
        writer.write_bytes(tmp_path / "checkpoint" / "bytes", b"")
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What is called when a folder is replaced: before or after a rename, amid the removal. The tensor
# that is there then: "a" was to be replaced by "b".
ENDS = {
    "before the old one is renamed": ("rename", 1, False, "a"),
    "after that": ("rename", 1, True, "a"),
    "before the new one is renamed": ("rename", 2, False, "a"),
    "after that, too": ("rename", 2, True, "b"),
    "before the old one is removed": ("rmtree", 1, False, "b"),
    "after that, as well": ("rmtree", 1, True, "b"),
}


def replace_until(folder: Path, end: str, stop: Callable[[], object]) -> OutputFolder:
    """Replace `folder` until stop() is called at this step; what was begun."""
    name, calls, after, _ = ENDS[end]
    output = OutputFolder(folder)
    writer.write_shard(output.partial / SINGLE, {"b": torch.zeros(1)})
    writer.write_json(output.partial / "config.json", {})
    owner = Path if name == "rename" else shutil
    real: Callable[..., object] = getattr(owner, name)

    def counted(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls -= 1
        if calls == 0 and not after:
            stop()
        result = real(*arguments, **options)
        if calls == 0:
            stop()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counted)
        try:
            output.commit()
        except KeyboardInterrupt:
            return output
    raise AssertionError("nothing ended it")


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("end", ENDS)
def test_an_interruption_of_replacing_leaves_a_whole_folder_and_nothing_else(
    tmp_path: Path, end: str
) -> None:
    folder = tmp_path / "checkpoint"
    write(folder, 1.0)
    replace_until(folder, end, interrupt).discard()
    assert Checkpoint(folder).names() == [ENDS[end][3]] and names(tmp_path) == ["checkpoint"]
    write(folder, 2.0)


@pytest.mark.parametrize("end", ENDS)
def test_a_kill_while_replacing_leaves_what_the_next_begin_puts_right(
    tmp_path: Path, end: str
) -> None:
    folder = tmp_path / "checkpoint"
    write(folder, 1.0)
    child = os.fork()
    if child == 0:
        try:
            replace_until(folder, end, lambda: os.kill(os.getpid(), signal.SIGKILL))
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    wanted = [ENDS[end][3]]
    place = folder if folder.exists() else scratch(folder) / "old"
    assert Checkpoint(place).names() == wanted
    OutputFolder(folder).discard()
    assert Checkpoint(folder).names() == wanted and names(tmp_path) == ["checkpoint"]


def test_an_old_folder_that_cannot_be_removed_is_no_failure_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(16, "busy", str(path))

    folder = tmp_path / "checkpoint"
    write(folder, 1.0)
    with monkeypatch.context() as patch, pytest.raises(CheckpointError) as caught:
        patch.setattr(shutil, "rmtree", refuse)
        write(folder, 2.0)
    assert_says(caught.value, [f"{folder}: is written and whole", "busy", ".checkpoint.tandem"])
    assert Checkpoint(folder).read("a", torch.float32).eq(2.0).all()
    write(folder, 3.0)
    assert names(tmp_path) == ["checkpoint"]


def test_only_one_writes_a_folder_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    output = OutputFolder(folder)
    writer.write_json(output.partial / "config.json", {})
    with pytest.raises(CheckpointError) as caught:
        OutputFolder(folder)
    assert_says(caught.value, [f"{folder}: is being written by process {os.getpid()} on "])
    OutputFolder(tmp_path / "other").discard()
    writer.write_shard(output.partial / SINGLE, {"a": torch.zeros(1)})
    output.commit()
    assert names(folder) == ["config.json", SINGLE] and names(tmp_path) == ["checkpoint"]
    # Who has committed and discards after that, as callers do, discards nothing of the next one.
    child = os.fork()
    if child == 0:
        try:
            begun = OutputFolder(folder)  # a name, so that it stays locked
            writer.write_json(begun.partial / "config.json", {"of": "child"})
            os.kill(os.getpid(), signal.SIGSTOP)
        finally:
            os._exit(1)
    os.waitpid(child, os.WUNTRACED)
    output.discard()
    assert (output.partial / "config.json").exists()
    with pytest.raises(CheckpointError, match=f"process {child} on"):
        OutputFolder(folder)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    write(folder, 1.0)
    assert names(tmp_path) == ["checkpoint"]


def test_what_came_between_is_not_removed(tmp_path: Path) -> None:
    """Someone else makes the folder between the renames of a writer that is killed there."""
    folder = tmp_path / "checkpoint"
    write(folder, 1.0)
    old, new = (scratch(folder) / name for name in ("old", "new"))
    new.mkdir(parents=True)
    shutil.copytree(folder, old)
    with pytest.raises(CheckpointError, match="exists again"):
        OutputFolder(folder)
    assert Checkpoint(folder).names() == Checkpoint(old).names() == ["a"]
    shutil.rmtree(folder)
    OutputFolder(folder).discard()
    assert Checkpoint(folder).names() == ["a"] and names(tmp_path) == ["checkpoint"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    gone = OutputFolder(tmp_path / "gone")
    gone.partial.rmdir()
    for action in (
        lambda: OutputFolder(tmp_path / "file" / "checkpoint"),
        lambda: writer.write_shard(tmp_path / "nowhere" / FIRST, {"a": torch.zeros(1)}),
        lambda: writer.write_index(tmp_path / "nowhere", {}, 0),
        gone.commit,
        lambda: writer.copy_file(tmp_path / "file", tmp_path / "nowhere" / "file"),
    ):
        with pytest.raises(CheckpointError, match="cannot write") as caught:
            action()
        assert_says(caught.value, [str(tmp_path)])

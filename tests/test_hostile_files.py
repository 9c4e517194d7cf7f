"""Files that were made to break a reader, or are no files: each is one line that names it."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from launch.convert import main
from tests.synthetic_checkpoint import TOY
from trainer.checkpoint.hf.reader import INDEX, Checkpoint
from trainer.config.schema import StorageType
from trainer.data import files
from trainer.data.documents import iter_documents
from trainer.data.file_tokenizer import load_tokenizer
from trainer.errors import CheckpointError, DataError
from trainer.generate.prompts import read_prompts
from trainer.io.json_object import read_json_object

DEEP = b"[" * 100_000
DEEP_OBJECT = b'{"a":' * 100_000
NESTED = b'{"a":' * 60 + b"1" + b"}" * 60  # parses, but not all that reads it could


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path)


NO_FILES: dict[str, Callable[[Path], None]] = {
    "pipe": lambda path: os.mkfifo(path),
    "device": link_to_device,
    "folder": folder,
    "loop": loop,
}


def one_line(error: pytest.ExceptionInfo[BaseException], *words: object) -> None:
    message = str(error.value)
    assert "\n" not in message and len(message) < 1000
    for word in words:
        assert str(word) in message, message


# JSON


CONTENTS = {
    "empty": b"", "nested": DEEP, "nested objects": DEEP_OBJECT, "nested and whole": NESTED,
    "cut": b'{"a": ', "list": b"[]", "not UTF-8": b'{"a": "\xff"}', "long number": b"9" * 5000,
    "surrogate": b'"\\ud800"', "zeros": b"\0" * 100,
}  # fmt: skip


@pytest.mark.parametrize("content", CONTENTS)
def test_json_that_cannot_be_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_bytes(CONTENTS[content])
    with pytest.raises(CheckpointError) as caught:
        read_json_object(tmp_path / "config.json", CheckpointError)
    one_line(caught, tmp_path / "config.json")


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    for name, read in {
        "config.json": lambda path: read_json_object(path, DataError),
        "tokenizer.json": lambda path: load_tokenizer(str(path)),
        "text.jsonl.gz": lambda path: list(files.read_chunks(path)),
    }.items():
        NO_FILES[kind](tmp_path / name)
        if (kind, name) != ("folder", "tokenizer.json"):  # a folder may have one
            with pytest.raises(DataError) as caught:
                read(tmp_path / name)
            one_line(caught, tmp_path / name)


def test_a_file_without_end_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(tmp_path / "tokenizer.json", "wb") as sparse:
        sparse.truncate(1 << 40)
    os.link(tmp_path / "tokenizer.json", tmp_path / "config.json")
    with pytest.raises(DataError) as caught:
        read_json_object(tmp_path / "config.json", DataError)
    one_line(caught, "config.json", "larger than")
    with pytest.raises(DataError) as caught:
        load_tokenizer(str(tmp_path))
    one_line(caught, "tokenizer.json", "larger than")


# A tokenizer


TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": None, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"</s>": 0, "a": 1}, "unk_token": "<unk>"},
}  # fmt: skip
MODEL = TOKENIZER["model"]
BAD_TOKENIZERS = {
    "nested": DEEP_OBJECT, "empty": b"", "no tokenizer": b'{"model_type": "deepseek_v3"}',
    "cut": json.dumps(TOKENIZER).encode()[:-9],
    "negative number": json.dumps(TOKENIZER | {"model": MODEL | {"vocab": {"a": -1}}}).encode(),
    "words of another type": json.dumps(TOKENIZER | {"model": MODEL | {"vocab": [1]}}).encode(),
    "no word": json.dumps(TOKENIZER | {"model": MODEL | {"vocab": {}}}).encode(),
    "bad pattern": json.dumps(
        TOKENIZER
        | {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "((("}, "behavior": "Isolated",
                             "invert": False}}
    ).encode(),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TOKENIZERS)
def test_what_is_no_tokenizer(tmp_path: Path, case: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(BAD_TOKENIZERS[case])
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(DataError) as caught:
        load_tokenizer(str(tmp_path))
    one_line(caught, tmp_path / "tokenizer")


def test_what_a_tokenizer_makes_of_text_and_special_tokens(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    for eos in ("\ud800", ["</s>"] * 10_000, {"content": 3}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
        with pytest.raises(DataError) as caught:
            load_tokenizer(str(tmp_path))
        one_line(caught, "tokenizer_config.json", "eos_token")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    tokenizer = load_tokenizer(str(tmp_path))
    for encode in (tokenizer.encode, lambda text: list(tokenizer.encode_documents([text]))):
        with pytest.raises(DataError) as caught:  # it lacks its token for unknown words
            encode(b"b")
        one_line(caught, "cannot encode")


# Text


def test_lines_and_compressed_data_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MOST_LINE_BYTES", 1000)
    monkeypatch.setattr(files, "CHUNK_BYTES", 100)
    monkeypatch.setattr(files, "ZSTD_CHUNK_BYTES", 16)
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "short"}\n{"text": "' + b"x" * 2000 + b'"}\n')
    documents = iter_documents(str(path))
    assert next(documents) == b"short"
    with pytest.raises(DataError) as caught:
        next(documents)
    one_line(caught, f"{path}, line 2", "longer than 1,000 bytes")
    monkeypatch.setattr(files, "RATIO_FROM", 1 << 20)
    zeros = bytes(1 << 22)
    for name, packed in {"x.gz": gzip.compress(zeros), "x.zst": zstandard.compress(zeros)}.items():
        (tmp_path / name).write_bytes(packed)
        with pytest.raises(DataError) as caught:
            sum(map(len, files.read_chunks(tmp_path / name)))
        one_line(caught, tmp_path / name, "decompress to more than 200 times")
        # Not even the library makes much at a time.
        monkeypatch.setattr(files, "RATIO_FROM", 1 << 30)
        sizes = [len(chunk) for chunk in files.read_chunks(tmp_path / name)]
        assert sum(sizes) == len(zeros) and max(sizes) <= len(zeros) / 4
        monkeypatch.setattr(files, "RATIO_FROM", 1 << 20)


@pytest.mark.parametrize("line", [DEEP, b"\0" * 100, b'{"text": 3}', b"\xff", b'"x"', NESTED])
def test_a_prompt_that_cannot_be_read_is_named_by_its_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"text": "first"}\n\n' + line)
    with pytest.raises(Exception) as caught:
        read_prompts(None, None, path, "text")
    one_line(caught, f"--prompts {path}, line 3")
    assert caught.value.exit_code == 2  # type: ignore[attr-defined]


def test_a_folder_of_odd_things_is_read_or_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    for name, make in NO_FILES.items():
        if name != "loop":
            make(tmp_path / f"{name}.txt")
    (tmp_path / "up").symlink_to(tmp_path)  # a loop of folders
    with open(tmp_path / "weights.bin", "wb") as sparse:  # of which only the start is read
        sparse.truncate(1 << 40)
    assert list(iter_documents(str(tmp_path))) == [b"text"]
    loop(tmp_path / "loop.txt")
    with pytest.raises(DataError) as caught:
        list(iter_documents(str(tmp_path)))
    one_line(caught, tmp_path / "loop.txt")
    for path in ("x" * 5000, "~nobody-of-this-name/x", "a\0b"):
        with pytest.raises(DataError) as caught:
            list(iter_documents(path))
        assert "\n" not in str(caught.value)


# Checkpoints


def header(content: dict[str, object] | bytes, data: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HEADERS = {
    "empty": b"", "cut in its length": b"abc", "length of 2^60": struct.pack("<Q", 1 << 60) + b"x",
    "nested": header(DEEP_OBJECT), "not UTF-8": header(b"\xff" * 9),
    "one place for two": header({"a": F32, "b": F32}, b"1234"), "no tensor": header({"a": 3}),
    "absurd shape": header({"a": F32 | {"shape": [1 << 62, 8]}}, b"1234"),
    "cut in its data": header({"a": F32}, b"12"),
    "beyond its end": header({"a": F32 | {"data_offsets": [0, 1 << 60]}}, b"1234"),
    "type of no use": header({"a": F32 | {"dtype": "F4", "shape": [8]}}, b"1234"),
    "no file": None,
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_a_safetensors_file_that_is_none(tmp_path: Path, case: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TOY))
    if (content := HEADERS[case]) is None:
        os.mkfifo(tmp_path / "model.safetensors")
    else:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(tmp_path)
    one_line(caught, tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "weight_map",
    [{"a": "../x.safetensors"}, {"a": ["x.safetensors"]}, {"a": "x.bin"}, [], 3, "x" * 10_000],
)
def test_an_index_that_is_none(tmp_path: Path, weight_map: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TOY))
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(tmp_path)
    one_line(caught, tmp_path / INDEX)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 10**400), ("rms_norm_eps", 10**400), ("rms_norm_eps", float("nan")),
        ("hidden_size", True), ("num_hidden_layers", "5"), ("model_type", ["x" * 99] * 999),
        ("rope_scaling", {"type": "y" * 9999}), ("quantization_config", ["z"] * 999),
        ("n_group", -1), ("max_position_embeddings", 1e99),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_values_of_a_config_json(
    released: Path, tmp_path: Path, key: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in released.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(TOY | {key: value}))
    assert main([str(tmp_path), str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and key in err and str(tmp_path) in err and len(err) < 1000


def test_names_of_others_do_not_steer_the_terminal(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "a\x1b[2J[red]b\n"
    shutil.copytree(released, odd)
    (odd / "config.json").write_text(json.dumps(TOY | {"model_type": "x\x1b]0;y\a[bold]"}))
    assert main([str(odd), "--check"]) == 1
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and "\a" not in out + err
    assert "a\\x1b[2J[red]b\\n" in out and "x\\x1b]0;y\\x07[bold]" in out


@pytest.mark.parametrize("dtype", ["keep", "float32", "bfloat16", "fp8"])
def test_weights_that_are_not_finite_are_not_converted(
    source: Path, tmp_path: Path, dtype: StorageType, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "model.norm.weight"
    file = source / Checkpoint(source).files[name]
    content = bytearray(file.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    start, _ = json.loads(content[8 : 8 + length])[name]["data_offsets"]
    content[8 + length + start : 8 + length + start + 2] = b"\xc0\x7f"  # nan in bfloat16
    file.write_bytes(content)
    assert main([str(source), str(tmp_path / "target"), "--dtype", dtype]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(file) in err and name in err and "not finite" in err
    assert not (tmp_path / "target").exists()

"""Preparing text: what is in the shards, whatever the workers, and after it was interrupted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from launch.prepare import main
from trainer.data.file_tokenizer import FileTokenizer, load_tokenizer
from trainer.data.shards.index import read_index
from trainer.data.shards.stream import prepared_stream
from trainer.data.tokens import ByteTokenizer
from trainer.errors import DataError
from trainer.prepare import prepare as preparing
from trainer.prepare import source as reading
from trainer.prepare.joined_tokens import JoinedTokens

BYTES = ByteTokenizer()
DOCUMENTS = [f"document {n}: {'x' * (n * 7 % 50)}.\n" for n in range(300)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Three files of JSON lines."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for part in range(3):
        lines = [json.dumps({"text": text}) for text in DOCUMENTS[part * 100 : part * 100 + 100]]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK_BYTES", 500)


def run(*options: Any) -> int:
    return main([str(option) for option in options])


def documents(folder: Path, split: str) -> list[bytes]:
    """Of a split of bytes, by the index of ends."""
    index = read_index(folder)
    found = []
    for shard in index.splits[split]:
        tokens = np.fromfile(folder / f"{shard.name}.tokens", "<u2")
        start = 0
        for end in np.fromfile(folder / f"{shard.name}.ends", "<i8").tolist():
            assert tokens[end - 1] == BYTES.end_of_document
            found.append(BYTES.decode(tokens[start:end]))
            start = end
        assert start == len(tokens)
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_shards_have_all_documents_in_order(texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--validation-fraction", "0.1", "--shard-tokens", "2000", "--workers", "0")
    assert run(texts, "--out", out, *options) == 0
    training, validation = (documents(out, split) for split in ("training", "validation"))
    wanted = [text.encode() for text in DOCUMENTS]
    assert sorted(training + validation) == sorted(wanted) and 15 < len(validation) < 45
    assert training == [text for text in wanted if text not in set(validation)]
    index = read_index(out)
    sizes = [shard.tokens for shard in index.splits["training"]]
    assert len(sizes) > 3 and all(2000 <= size < 2100 for size in sizes[:-1])
    stream = prepared_stream(out, index, "training")
    assert stream.size == sum(sizes)
    whole = stream.read(0, stream.size)
    assert BYTES.decode(whole) == b"".join(training)
    assert np.array_equal(stream.read(1990, 4110), whole[1990:4110])


def test_workers_change_no_byte(texts: Path, tmp_path: Path) -> None:
    options = ("--train-tokenizer", "300", "--fill-in-middle", "0.5", "--split-joined", "0.5")
    for workers in (0, 3):
        assert run(texts, "--out", tmp_path / str(workers), "--workers", workers, *options) == 0
    assert content(tmp_path / "0") == content(tmp_path / "3")


@pytest.mark.parametrize("stop_after", [1, 7, 20])
def test_what_was_interrupted_goes_on(
    texts: Path, tmp_path: Path, stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a crash: what was written since the last note of progress is written again."""
    (texts / "1.jsonl").write_text("{}\n" + (texts / "1.jsonl").read_text())
    options = ("--validation-fraction", "0.1", "--shard-tokens", "2000", "--workers", "0")
    options += ("--skip-bad",)
    assert run(texts, "--out", tmp_path / "whole", *options) == 0
    encoded, saves = preparing._encoded, preparing._saved
    monkeypatch.setattr(preparing, "_SAVE_EVERY", 0.0)

    def crash(*arguments: Any) -> Iterator[Any]:
        for number, each in enumerate(encoded(*arguments)):
            if number == stop_after + 1:
                raise OSError(28, "No space left on device", "somewhere")
            yield each

    def save_all_but_last(folder: Path, writers: Any, done: Any) -> Any:
        done_chunks.append(1)
        return saves(folder, writers, done) if len(done_chunks) <= stop_after else done

    done_chunks: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "_encoded", crash)
        patch.setattr(preparing, "_saved", save_all_but_last)
        assert run(texts, "--out", tmp_path / "parts", *options) == 1
    assert not (tmp_path / "parts" / "index.json").exists()
    assert run(texts, "--out", tmp_path / "parts", "--seed", "1", *options) == 1  # other options
    assert run(texts, "--out", tmp_path / "parts", *options) == 0
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    assert read_index(tmp_path / "whole").about["skipped"] == 1


def test_a_bad_document_is_named_and_skipped_only_if_asked(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = texts / "1.jsonl"
    lines = path.read_text().splitlines()
    lines[4], lines[9] = '{"text": 5}', "{"
    path.write_text("\n".join(lines))
    (texts / "2.txt").write_bytes(b"\xff")
    assert run(texts, "--out", tmp_path / "out", "--workers", "0") == 1
    assert f"{path}, line 5: field 'text' holds int" in capsys.readouterr().err
    assert run(texts, "--out", tmp_path / "out", "--overwrite", "--skip-bad", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["skipped"]["count"] == 3
    assert [line.partition(": ")[0] for line in said["skipped"]["first"]] == [
        f"{path}, line 5", f"{path}, line 10", str(texts / "2.txt"),
    ]  # fmt: skip
    assert (
        sum(map(len, (documents(tmp_path / "out", s) for s in ("training", "validation")))) == 298
    )


@pytest.mark.parametrize("kind", ["parquet", "jsonl.zst"])
def test_rows_of_parquet_are_documents(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        column = pyarrow.array([*DOCUMENTS, None])
        parquet.write_table(pyarrow.table({"id": range(301), "body": column}), path)
    else:
        zstandard = pytest.importorskip("zstandard")
        lines = "\n".join(json.dumps({"body": text}) for text in [*DOCUMENTS, None])
        path.write_bytes(zstandard.compress(lines.encode()))
    options = (path, "--out", tmp_path / "out", "--validation-fraction", "0", "--workers", "0")
    assert run(*options) == 1 and "text" in capsys.readouterr().err
    assert run(*options, "--overwrite", "--text-field", "body") == 1
    assert "301" in capsys.readouterr().err
    assert run(*options, "--overwrite", "--text-field", "body", "--skip-bad") == 0
    assert documents(tmp_path / "out", "training") == [text.encode() for text in DOCUMENTS]


def test_fill_in_the_middle_moves_parts_and_loses_none(texts: Path, tmp_path: Path) -> None:
    """Prefix, suffix, middle, between the tokenizer's own marks; nothing of it is held out."""
    out = tmp_path / "out"
    options = ("--train-tokenizer", "300", "--fill-in-middle", "0.5", "--workers", "0")
    assert run(texts, "--out", out, "--validation-fraction", "0.1", *options) == 0
    tokenizer, index = load_tokenizer(str(out / "tokenizer")), read_index(out)
    assert isinstance(tokenizer, FileTokenizer)
    marks = [tokenizer.library.token_to_id(f"<|fim_{n}|>") for n in ("prefix", "suffix", "middle")]
    stream = prepared_stream(out, index, "training")
    filled = 0
    found = set()
    for document in _split(stream.read(0, stream.size), tokenizer.end_of_document):
        if document[:1].tolist() != marks[:1]:
            found.add(tokenizer.decode(document))
            continue
        filled += 1
        suffix, middle = (int(np.flatnonzero(document == mark)[0]) for mark in marks[1:])
        parts = document[1:suffix], document[middle + 1 :], document[suffix + 1 : middle]
        found.add(b"".join(tokenizer.decode(part) for part in parts))
    assert 0.35 < filled / index.documents("training") < 0.65
    validation = prepared_stream(out, index, "validation")
    held_out = _split(validation.read(0, validation.size), tokenizer.end_of_document)
    assert not set(np.concatenate(held_out).tolist()) & set(marks)
    found |= {tokenizer.decode(document) for document in held_out}
    assert found == {text.encode() for text in DOCUMENTS}


def _split(tokens: NDArray[Any], end: int) -> list[NDArray[Any]]:
    ends = np.flatnonzero(tokens == end)
    return [tokens[a:b] for a, b in zip([0, *(ends[:-1] + 1)], ends)]


def test_joined_tokens_are_split_into_their_parts(texts: Path, tmp_path: Path) -> None:
    assert run(texts, "--out", tmp_path / "out", "--train-tokenizer", "300", "--workers", "0") == 0
    tokenizer = load_tokenizer(str(tmp_path / "out" / "tokenizer"))
    joined = JoinedTokens(tokenizer, 0.25)
    assert joined.count >= 1  # ".\n", which ends every document
    tokens = tokenizer.encode("x.\n" * 4000)
    split = joined.split(tokens, np.random.RandomState(0))
    assert tokenizer.decode(split) == tokenizer.decode(tokens)
    assert 0.22 < (len(split) - len(tokens)) / 4000 < 0.28


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("nowhere", "--out", "out"), "nowhere does not exist"),
        (("texts", "--out", "texts"), "holds 0.jsonl"),
        (("texts", "--out", "out", "--tokenizer", "nowhere"), "--tokenizer nowhere"),
        (("texts", "--out", "out", "--fill-in-middle", "0.1"), "three tokens"),
        (("texts", "--out", "out", "--validation-fraction", "0.00001"), "held out none"),
        (("texts", "--out", "out", "--train-tokenizer", "100000"), "ask for fewer"),
    ],
)
def test_what_cannot_be_prepared_is_one_line(
    options: tuple[str, ...],
    words: str,
    texts: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(texts.parent)
    assert run(*options, "--workers", "0") in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_prepared_text_is_not_written_over_and_needs_no_torch(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import subprocess

    code = (
        "import sys; from launch.prepare import main; "
        f"main([{str(texts)!r}, '--out', {str(tmp_path / 'out')!r}, '--workers', '1', "
        "'--validation-fraction', '0.1']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert run(texts, "--out", tmp_path / "out") == 2
    assert "prepared already: give --overwrite" in capsys.readouterr().err


def test_a_broken_folder_is_named(texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(texts, "--out", out, "--workers", "0", "--validation-fraction", "0.1") == 0
    shard = out / "training-00000.tokens"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"training-00000\.tokens: has .* bytes where index"):
        read_index(out)
    (out / "index.json").write_text('{"format": "tandem-tokens", "version": 2}')
    with pytest.raises(DataError, match="version 2"):
        read_index(out)

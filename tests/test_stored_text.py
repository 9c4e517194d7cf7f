"""Reading prepared text: orders that are computed, mixtures, and text of any size."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.prepare import main as prepare
from tests.commands import TINY
from trainer.build.training_text import load_text
from trainer.config.parse import config_parser, parse
from trainer.config.schema import Config
from trainer.data.bijection import Bijection
from trainer.data.megatron import open_megatron
from trainer.data.mixture import Interleaving, Phase
from trainer.data.mixture_config import read_mixture
from trainer.data.sequences import windows
from trainer.data.shards.index import FORMAT, VERSION
from trainer.data.shards.stream import Mapped, TokenStream
from trainer.data.stored import StoredSequences
from trainer.errors import ConfigError, DataError


def config(*options: str) -> Config:
    return parse(config_parser("test", "", ""), ["--config", TINY, *options])[0]


# ---- orders ----


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_a_bijection_has_every_number_once(count: int, key: int) -> None:
    order = Bijection(count, key).of(np.arange(count, dtype=np.uint64))
    assert sorted(order.tolist()) == list(range(count))


def test_a_bijection_is_random_enough_at_any_size() -> None:
    """Means and neighbours of numbers far apart; and another order for another key."""
    for count in (1000, 10**6 + 1, 10**12 + 7):
        numbers = np.unique(np.linspace(0, count - 1, 1000).astype(np.uint64))
        one, other = (Bijection(count, key).of(numbers) / count for key in (1, 2))
        assert abs(one.mean() - 0.5) < 0.05 and abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.15
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.15
    in_a_row = Bijection(10**12, 3).of(np.arange(10_000, dtype=np.uint64)) / 10**12
    counts, _ = np.histogram(in_a_row, 20, (0, 1))
    assert counts.min() > 400 and counts.max() < 600


def stored(
    folder: Path, sizes: list[int], length: int = 7, lookahead: int = 1, seed: int = 3
) -> StoredSequences:
    """A stream of the numbers from 0 on, in files of these sizes."""
    numbers, parts, start = np.arange(sum(sizes), dtype=np.uint32), [], 0
    for number, size in enumerate(sizes):
        path = folder / f"{number}.tokens"
        path.write_bytes(b"x" * 5 + numbers[start : start + size].astype("<u4").tobytes())
        parts.append(Mapped(path, size, 5))
        start += size
    stream = TokenStream(parts, np.dtype("<u4"))
    return StoredSequences(stream, "it", seed=seed, sequence_length=length, lookahead=lookahead)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 20), st.integers(0, 2),
    st.integers(0, 4),
)  # fmt: skip
def test_an_epoch_reads_no_target_twice(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    length: int,
    lookahead: int,
    epoch: int,
) -> None:
    folder = tmp_path_factory.mktemp("stream")
    if sum(sizes) < length + 1 + lookahead:
        with pytest.raises(
            DataError, match=rf"data\.sequence_length: {length} .* has {sum(sizes)}"
        ):
            stored(folder, sizes, length, lookahead)
        return
    sequences = stored(folder, sizes, length, lookahead)
    count = sequences.sequences_per_epoch
    found = windows(sequences, epoch * count, count).astype(np.int64)
    assert (np.diff(found, axis=1) == 1).all() and found.shape[1] == length + 1 + lookahead
    targets = found[:, 1 : length + 1].ravel().tolist()
    assert sorted(targets) == list(range(1, count * length + 1))
    assert sum(sizes) - 1 - lookahead - len(targets) < length


def test_epochs_differ_and_a_number_gives_its_window(tmp_path: Path) -> None:
    sequences = stored(tmp_path, [500, 300])
    count = sequences.sequences_per_epoch
    orders = {tuple(windows(sequences, epoch * count, count)[:, 0]) for epoch in range(4)}
    again = stored(tmp_path, [500, 300])
    assert len(orders) == 4
    for index in (5 * count + 1, 2, count):
        assert np.array_equal(again.window(index), sequences.window(index))
    other = stored(tmp_path, [500, 300], seed=4)
    assert not np.array_equal(windows(other, 0, count), windows(sequences, 0, count))


# ---- mixtures ----

SHARES = st.lists(st.integers(0, 10), min_size=3, max_size=3).filter(any)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 200), SHARES), min_size=1, max_size=4), st.integers(0, 1500)
)
def test_sources_have_their_shares_at_any_time(
    steps: list[tuple[int, list[int]]], first: int
) -> None:
    """Of any number of sequences to within a few; each source's sequences in order, none left out;
    and the turns from anywhere are those of reading from the start."""
    phases, start = [], 0
    for length, weights in steps:
        phases.append(Phase(start, tuple(weight / sum(weights) for weight in weights)))
        start += length
    interleaving = Interleaving(tuple(phases))
    turns = interleaving.turns(0, 1600)
    taken = Counter[int]()
    wanted = np.zeros(3)
    for number, turn in enumerate(turns):
        assert turn.index == taken[turn.source]
        taken[turn.source] += 1
        phase = [phase for phase in phases if phase.start <= number][-1]
        wanted += phase.shares
        assert all(abs(taken[source] - wanted[source]) < 3 for source in range(3))
        if number % 400 == 0:
            assert interleaving.taken(number + 1) == [taken[source] for source in range(3)]
    assert interleaving.turns(first, 100) == turns[first : first + 100]


def test_a_source_that_ends_has_no_more_turns() -> None:
    interleaving = Interleaving((Phase(0, (0.5, 0.5)), Phase(100, (1.0, 0.0))))
    sources = [turn.source for turn in interleaving.turns(0, 1000)]
    assert 48 < sources[:100].count(1) < 52 and not any(sources[103:])


def test_weights_are_numbers_until_so_many_tokens() -> None:
    mixture = read_mixture(["a: x/y at 3 until 1K tokens, 1", "b: at home at 1"], 10)
    assert mixture.paths == {"a": "x/y", "b": "at home"}
    assert mixture.interleaving.phases == (Phase(0, (0.75, 0.25)), Phase(100, (0.5, 0.5)))


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["a: x at 1", "a: y at 1"], "two sources are called a"),
        (["a: x at 1 until 5 steps, 2"], "until so many tokens"),
        (["a: x at linear 0 to 1 until 5 tokens, 2"], "weights are numbers"),
        (["a: x at 0"], "all weights are 0"),
        (["a: x"], "sources such as"),
        ([], "has no source"),
    ],
)
def test_a_mixture_that_is_none(texts: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_mixture(texts, 10)


# ---- whole texts ----


WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    texts = (" ".join(WORDS[(n + i * i) % 6] for i in range(n % 30 + 3)) for n in range(400))
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    options = ["--validation-fraction", "0.2", "--workers", "0", "--train-tokenizer", "280"]
    source, out = str(tmp_path / "a.jsonl"), tmp_path / "out"
    assert prepare([source, "--out", str(out), *options]) == 0
    return out


def test_a_run_takes_the_tokenizer_of_its_text(prepared: Path) -> None:
    text = load_text(config("--data.path", str(prepared), "--model.vocab_size", "300"))
    assert text.tokenizer.vocabulary_size == 280
    window = text.tokenizer.decode(text.sequences.window(5)).decode(errors="replace")
    assert set(window) <= set(" ".join(WORDS))
    assert text.bytes_per_token[""] > 1 and "tokens to train on" in text.describe()
    with pytest.raises(DataError, match="prepared with another tokenizer"):
        other = prepared.parent / "other"
        source = str(prepared.parent / "a.jsonl")
        assert prepare([source, "--out", str(other), "--workers", "0",
                        "--validation-fraction", "0.2"]) == 0  # fmt: skip
        load_text(config("--data.mixture", f"['a: {prepared} at 1', 'b: {other} at 1']",
                         "--model.vocab_size", "300"))  # fmt: skip


def test_a_mixture_reads_each_source_in_turn(prepared: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for n in range(30):
        (plain / f"{n}.txt").write_text("9" * 300)
    mixture = f"['words: {prepared} at 3', 'nines: {plain} at 1']"
    text = load_text(config("--data.mixture", mixture, "--model.vocab_size", "300"))
    decoded = [text.tokenizer.decode(text.sequences.window(n)) for n in range(80)]
    nines = [set(window) == {ord("9")} for window in decoded]
    assert 18 <= sum(nines) <= 22
    epochs = text.sequences.epochs(80)
    assert set(epochs) == {"words", "nines"} and all(value > 0 for value in epochs.values())
    assert [source.name for source in text.sources] == ["words", "nines"]
    assert text.sequences.origin(0).startswith(("words: the training tokens", "nines: document"))


@pytest.mark.parametrize(("code", "kind"), [(4, "<i4"), (8, "<u2")])
def test_megatrons_files_are_read(tmp_path: Path, code: int, kind: str) -> None:
    lengths = [50 + n % 7 for n in range(40)]
    tokens = np.arange(sum(lengths)) % 250
    (tmp_path / "x.bin").write_bytes(tokens.astype(kind).tobytes())
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1])) * np.dtype(kind).itemsize
    header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, 40, 41)
    arrays = (np.array(lengths, "<i4"), starts.astype("<i8"), np.arange(41, dtype="<i8"))
    (tmp_path / "x.idx").write_bytes(header + b"".join(a.tobytes() for a in arrays))
    training, validation, _ = open_megatron(tmp_path / "x", 0.2)
    both = [stream.read(0, stream.size) for stream in (training, validation)]
    assert np.array_equal(np.concatenate(both), tokens)
    assert training.size in np.cumsum(lengths) and 0.75 < training.size / len(tokens) < 0.85
    text = load_text(config("--data.path", str(tmp_path / "x.bin")))
    assert np.isin(text.sequences.window(3), tokens).all() and "held out" in text.describe()
    (tmp_path / "x.idx").write_bytes(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 7, 40, 41))
    with pytest.raises(DataError, match="type 7"):
        load_text(config("--data.path", str(tmp_path / "x.idx")))


READ = 2000 * 4098 * 2  # bytes
BIG = """
import resource, sys
from trainer.data.text_source import Reading, open_source
from trainer.data.tokens import ByteTokenizer
def used():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = used()
how = Reading(0, 4096, 1, 64, "text", 0.05)
source = open_source("", sys.argv[1], how, ByteTokenizer())
for number in range(2000):
    source.training.window(number * 1_000_003)
print(used() - before)
"""


def test_text_of_any_size_opens_at_once(tmp_path: Path) -> None:
    """100 GB of tokens, in files with holes: memory of what was read alone."""
    tokens, shards = 50_000_000_000, []
    for number in range(10):
        name, size = f"training-{number:05d}", tokens // 10
        for path, length in ((f"{name}.tokens", 2 * size), (f"{name}.ends", 8)):
            with open(tmp_path / path, "wb") as file:
                file.truncate(length)
        shards.append({"name": name, "tokens": size, "documents": 1, "checksum": 0})
    for path, length in (("validation-00000.tokens", 2_000_000), ("validation-00000.ends", 8)):
        with open(tmp_path / path, "wb") as file:
            file.truncate(length)
    validation = {"name": "validation-00000", "tokens": 10**6, "documents": 1, "checksum": 0}
    index = {
        "format": FORMAT, "version": VERSION, "token_type": "uint16", "vocabulary_size": 257,
        "end_of_document": 256, "tokenizer": "bytes", "about": {},
        "splits": {"training": shards, "validation": [validation]},
    }  # fmt: skip
    (tmp_path / "index.json").write_text(json.dumps(index))
    command = [sys.executable, "-c", BIG, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 4 * READ

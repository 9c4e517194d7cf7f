"""The data: what is read, how it is split and packed, and that a number alone gives a batch."""

import gzip
import itertools
import json
import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.bigram import bigram_cross_entropy, bigram_log_probabilities, count_bigrams
from trainer.data.corpus import Corpus, Split, load_corpus, split_corpus
from trainer.data.corpus_sequences import CorpusSequences
from trainer.data.documents import iter_documents
from trainer.data.files import read_chunks, read_lines
from trainer.data.sequences import micro_batch, windows
from trainer.data.tokens import ByteTokenizer
from trainer.errors import DataError

BYTES = ByteTokenizer()


def numbered_split(lengths: list[int], name: str = "training") -> Split:
    """Documents whose tokens all differ, so that a token says where it was read."""
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    corpus = Corpus(np.arange(offsets[-1], dtype=np.uint32), offsets)
    return Split(name, corpus, np.arange(len(lengths)))


def batches_of(split: Split, seed: int = 3, length: int = 7, lookahead: int = 1) -> CorpusSequences:
    return CorpusSequences(split, seed=seed, sequence_length=length, lookahead=lookahead)


def write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        content = zstandard.compress(content)
    path.write_bytes(content)
    return str(path)


def lines(*texts: str, field: str = "text") -> bytes:
    return b"".join(json.dumps({"id": 1, field: text}).encode() + b"\n" for text in texts)


# Tokens


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_bytes_survive_the_tokenizer(content: bytes) -> None:
    tokens = BYTES.encode(content)
    assert tokens.dtype == np.uint16 and tokens.tolist() == list(content)
    assert BYTES.decode(np.append(tokens, BYTES.end_of_document)) == content


def test_text_is_its_utf8_and_other_tokens_are_refused() -> None:
    assert BYTES.decode(BYTES.encode("naïve 😀")).decode() == "naïve 😀"
    with pytest.raises(ValueError, match=r"97\.\.257"):
        BYTES.decode(np.array([97, 257]))


# Documents


def test_the_default_corpus_is_the_standard_library() -> None:
    corpus = load_corpus(None, "text", BYTES)
    assert corpus.documents > 300 and corpus.tokens.size > 5_000_000
    assert np.all(corpus.tokens[corpus.offsets[1:] - 1] == BYTES.end_of_document)
    assert np.sum(corpus.tokens == BYTES.end_of_document) == corpus.documents
    again = load_corpus(None, "text", BYTES)
    assert np.array_equal(corpus.tokens, again.tokens)
    assert Path(json.__file__).read_bytes() in set(iter_documents(None))
    without = {Path(pytest.__file__).read_bytes(), Path(np.__file__).read_bytes()}
    assert not without & set(iter_documents(None))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst", "a", "a.md"])
def test_a_text_file_is_one_document(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "one\nzwölf\n".encode())
    assert list(iter_documents(path)) == ["one\nzwölf\n".encode()]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_json_lines_hold_a_document_each(tmp_path: Path, name: str) -> None:
    content = b"\xef\xbb\xbf" + lines("é\n1", "", field="body") + b"\r\n" + lines("2", field="body")
    path = write(tmp_path / name, content.rstrip(b"\n"))
    assert list(iter_documents(path, "body")) == ["é\n1".encode(), b"2"]


def test_a_folder_gives_its_text_files_by_name(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", b"B")
    write(tmp_path / "a" / "z.py", b"Z")
    write(tmp_path / "a" / "LICENSE", b"L")
    write(tmp_path / "c.jsonl.zst", lines("c1", "c2"))
    write(tmp_path / "d.txt.gz", b"D")
    write(tmp_path / "empty.txt", b"")
    write(tmp_path / ".hidden.txt", b"no")
    write(tmp_path / ".git" / "x.txt", b"no")
    write(tmp_path / "picture.png", b"\x89PNG\xff")
    write(tmp_path / "zeros.bin", b"a\0b")
    write(tmp_path / "archive.tar.gz", b"no")
    os.mkfifo(tmp_path / "pipe.txt")
    assert list(iter_documents(str(tmp_path))) == [b"L", b"Z", b"B", b"c1", b"c2", b"D"]


def test_lines_and_frames_longer_than_a_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.data.files.CHUNK_BYTES", 5)
    content = b"a" * 23 + b"\n\n" + b"b" * 4 + b"\n" + b"c"
    for name in ("x", "x.gz", "x.zst"):
        path = Path(write(tmp_path / name, content))
        assert list(read_lines(path)) == [b"a" * 23, b"", b"bbbb", b"c"]
    frames = zstandard.compress(b"first ") + zstandard.compress(b"second")
    (tmp_path / "two.zst").write_bytes(frames)
    assert b"".join(read_chunks(tmp_path / "two.zst")) == b"first second"


def fails(path: str, *parts: str, field: str = "text") -> None:
    """Reading `path` must fail with one line that has all the parts."""
    with pytest.raises(DataError) as caught:
        list(iter_documents(path, field))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_errors_of_a_path(tmp_path: Path) -> None:
    fails(str(tmp_path / "gone"), "data.path", "gone", "does not exist")
    fails("/dev/null", "data.path", "neither a file nor a folder")
    fails(str(tmp_path), "data.path", "no text in", str(tmp_path))
    fails(write(tmp_path / "e.txt", b""), "data.path", "no text in", "e.txt")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nowhere")
    fails(str(tmp_path), "broken.txt", "cannot be read", "No such file")


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "locked.txt", b"x")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    # The tests may run as root, who may read everything.
    monkeypatch.setattr("builtins.open", refuse)
    fails(path, "locked.txt", "cannot be read", "Permission denied")


@pytest.mark.parametrize("inside", [False, True])
def test_errors_of_a_file(tmp_path: Path, inside: bool) -> None:
    def check(name: str, content: bytes, *parts: str) -> None:
        (tmp_path / name).write_bytes(content)
        fails(str(tmp_path if inside else tmp_path / name), name, *parts)
        (tmp_path / name).unlink()

    text = random_text(4000)
    check("latin.txt", b"caf\xe9", "not UTF-8", "byte 3")
    check("x.txt.gz", b"plain", "corrupt")
    check("x.txt.zst", b"plain", "corrupt")
    check("x.txt.gz", gzip.compress(text)[:-20], "end too early")
    check("x.txt.zst", zstandard.compress(text)[:-20], "end too early")
    check("x.txt.zst", b"", "end too early")
    flipped = bytearray(gzip.compress(text))
    flipped[-6] ^= 1
    check("x.jsonl.gz", bytes(flipped), "corrupt")
    header = gzip.compress(text)[:10]
    check("x.jsonl.gz", header + b"\xff" * 50, "corrupt")


def random_text(size: int) -> bytes:
    return np.random.RandomState(0).randint(97, 123, size).astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (b"{oops", ("not JSON", "column 2")),
        (b'{"id": 1, "body": "x"}', ("no field 'text'", "data.text_field", "'id', 'body'")),
        (b"{}", ("no field 'text'", "none")),
        (b'{"text": 5}', ("holds int", "data.text_field")),
        (b'["text"]', ("a JSON list", "'text'", "data.text_field")),
        (b'{"text": "\xff"}', ("not UTF-8", "byte 10")),
        (b'{"text": "\\ud800"}', ("surrogate",)),
        (b"[" * 100_000, ("cannot be read",)),
        (b'{"n": ' + b"9" * 5000 + b"}", ("cannot be read",)),
    ],
)
def test_errors_of_a_line(tmp_path: Path, line: bytes, parts: tuple[str, ...]) -> None:
    path = write(tmp_path / "x.jsonl.gz", lines("good") + b"\n" + line)
    fails(path, "x.jsonl.gz, line 3", *parts)


# Corpus and split


@settings(deadline=None)
@given(st.integers(2, 60), st.floats(0.001, 0.999), st.integers(0, 2**40))
def test_the_split_is_by_document_and_by_seed(count: int, fraction: float, seed: int) -> None:
    corpus = numbered_split([3] * count).corpus
    training, validation = split_corpus(corpus, fraction, seed)
    assert sorted([*training.documents, *validation.documents]) == list(range(count))
    wanted = min(max(round(count * fraction), 1), count - 1)
    assert validation.documents.size == wanted
    assert np.array_equal(split_corpus(corpus, fraction, seed)[1].documents, validation.documents)


def test_seeds_hold_out_different_documents() -> None:
    corpus = numbered_split([3] * 1000).corpus
    seeds = (0, 1, 2**32, 2**33)
    chosen = {tuple(split_corpus(corpus, 0.1, seed)[1].documents) for seed in seeds}
    assert len(chosen) == len(seeds)


def test_one_document_is_cut_in_two(tmp_path: Path) -> None:
    corpus = load_corpus(write(tmp_path / "a.txt", b"0123456789" * 10), "text", BYTES)
    training, validation = split_corpus(corpus, 0.1, 0)
    assert (training.size, validation.size) == (91, 10)
    (first,), (last,) = list(training.blocks()), list(validation.blocks())
    assert np.array_equal(np.concatenate((first, last)), corpus.tokens)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(DataError, match=r"data\.validation_fraction"):
        split_corpus(numbered_split([3, 3]).corpus, fraction, 0)


def test_arrays_that_do_not_fit_are_refused() -> None:
    tokens = np.arange(6, dtype=np.uint16)
    with pytest.raises(ValueError, match="offsets"):
        Corpus(tokens, np.array([0, 5]))
    with pytest.raises(ValueError, match="tokens"):
        Corpus(tokens.astype(np.int64), np.array([0, 6]))


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 30))
def test_blocks_give_the_split_once_in_order(lengths: list[int], block_tokens: int) -> None:
    split = numbered_split(lengths)
    odd = Split("odd", split.corpus, split.documents[::2])
    offsets = split.corpus.offsets
    wanted = [t for d in odd.documents for t in range(offsets[d], offsets[d + 1])]
    blocks = list(odd.blocks(block_tokens))
    assert np.concatenate(blocks).tolist() == wanted
    assert all(block.size < block_tokens + 9 for block in blocks)


# Batches


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 25), min_size=1, max_size=30),
    st.integers(1, 40),
    st.integers(0, 2),
    st.integers(0, 5),
)
def test_an_epoch_reads_no_target_twice(
    lengths: list[int], length: int, lookahead: int, epoch: int
) -> None:
    split = numbered_split(lengths)
    if split.size < length + 1 + lookahead:
        with pytest.raises(DataError, match=f"data.sequence_length: {length} .* has {split.size}"):
            batches_of(split, length=length, lookahead=lookahead)
        return
    batches = batches_of(split, length=length, lookahead=lookahead)
    count = batches.sequences_per_epoch
    found = windows(batches, epoch * count, count)
    assert found.shape == (count, length + 1 + lookahead)
    targets = found[:, 1 : length + 1]
    assert len(set(targets.ravel().tolist())) == targets.size
    # All but the first token and an incomplete window are targets.
    assert split.size - 1 - lookahead - targets.size < length
    # Every window is a stretch of one order of whole documents.
    starts = split.corpus.offsets[:-1]
    ends = split.corpus.offsets[1:] - 1
    for window in found:
        jumps = np.flatnonzero(np.diff(window.astype(np.int64)) != 1)
        assert np.isin(window[jumps], ends).all() and np.isin(window[jumps + 1], starts).all()


def stream(batches: CorpusSequences, epoch: int) -> list[int]:
    """The tokens that an epoch's windows cover, in the order of its stream."""
    count = batches.sequences_per_epoch
    found = {tuple(w.tolist()) for w in windows(batches, epoch * count, count)}
    overlap = batches.window_tokens - batches.sequence_length
    follows = {w[:overlap]: w for w in found}
    (at,) = [w for w in found if all(w[:overlap] != v[-overlap:] for v in found)]
    joined = list(at)
    for _ in range(count - 1):
        joined += follows[tuple(joined[-overlap:])][overlap:]
    return joined


def test_epochs_are_different_orders_of_the_same_documents() -> None:
    lengths = [5, 9, 3, 12, 7, 1, 8, 20, 4, 2, 6, 11] * 3
    split = numbered_split(lengths)
    batches = batches_of(split, length=1)
    streams = [stream(batches, epoch) for epoch in range(4)]
    assert all(sorted(s) == list(range(split.size)) for s in streams)
    orders = [[t for t in s if t in set(split.corpus.offsets.tolist())] for s in streams]
    assert len({tuple(order) for order in orders}) == 4
    # Whole documents: after a document's first token come the rest of it.
    for s, first in itertools.product(streams, split.corpus.offsets[:-1].tolist()):
        length = lengths[split.corpus.offsets.tolist().index(first)]
        assert s[s.index(first) :][:length] == list(range(first, first + length))


def test_a_batch_mixes_documents() -> None:
    split = numbered_split([1000] * 30)
    tokens = micro_batch(batches_of(split, length=10), 0, 12, 0, 0, 1)
    assert len({int(t) // 1000 for t in tokens[:, 0]}) > 6


def test_a_number_and_a_seed_give_the_window_whatever_was_read_before() -> None:
    split = numbered_split([11] * 40)
    once = batches_of(split)
    count = once.sequences_per_epoch
    indices = [0, 5 * count + 2, 3, count - 1, count, 2 * count, 3 * count + 1, 0, 3]
    for index in indices:
        assert np.array_equal(once.window(index), batches_of(split).window(index))
    # Another seed orders the documents otherwise: it has windows that this one never reads.
    own, other = (
        {tuple(w.tolist()) for w in windows(batches_of(split, seed=seed), 0, count)}
        for seed in (3, 4)
    )
    assert own != other
    # With one document only the windows can be shuffled.
    one, two = (windows(batches_of(numbered_split([400]), seed=seed), 0, 50) for seed in (3, 4))
    assert not np.array_equal(one, two)


def test_only_two_epochs_are_kept() -> None:
    batches = batches_of(numbered_split([11] * 40))
    for epoch in range(5):
        batches.window(epoch * batches.sequences_per_epoch)
    assert list(batches._orders) == [3, 4]


LAYOUTS = [(1, 1), (1, 12), (2, 1), (2, 3), (3, 4), (4, 1), (12, 1), (6, 2)]


@pytest.mark.parametrize(("data_ranks", "micro_batches"), LAYOUTS)
def test_the_global_batch_is_the_same_in_every_layout(data_ranks: int, micro_batches: int) -> None:
    batches = batches_of(numbered_split([11] * 14))
    sequences = 12 // data_ranks // micro_batches
    for first in (0, 5, 36):
        parts = [
            micro_batch(batches, first, sequences, d, m, micro_batches)
            for d in range(data_ranks)
            for m in range(micro_batches)
        ]
        assert all(p.shape == (sequences, 9) for p in parts)
        assert parts[0].dtype == torch.int64
        whole = torch.from_numpy(windows(batches, first, 12).astype(np.int64))
        assert torch.equal(torch.cat(parts), whole)


def test_memory_maps_serve_as_a_corpus(tmp_path: Path) -> None:
    split = numbered_split([11] * 14)
    np.save(tmp_path / "tokens.npy", split.corpus.tokens)
    mapped = Corpus(np.load(tmp_path / "tokens.npy", mmap_mode="r"), split.corpus.offsets)
    same = Split("training", mapped, split.documents)
    assert np.array_equal(windows(batches_of(same), 0, 30), windows(batches_of(split), 0, 30))


# Bigram


def test_bigram_by_hand() -> None:
    # Training text 0 1 0 1 | 0 2 (two documents, a third left out): 01, 10, 01, 10, 02.
    corpus = Corpus(np.array([0, 1, 0, 1, 2, 2, 0, 2], dtype=np.uint16), np.array([0, 4, 6, 8]))
    counts = count_bigrams(Split("training", corpus, np.array([0, 2])), 3)
    assert counts.tolist() == [[0, 2, 1], [2, 0, 0], [0, 0, 0]]
    # n_b = 2, 2, 1 of 5, so q = 3/8, 3/8, 2/8; backoff 2 weighs 2 * 3 = 6 counts.
    logs = bigram_log_probabilities(counts, backoff=2.0)
    assert np.allclose(np.exp(logs).sum(axis=1), 1)
    p01, p12, p22 = (2 + 6 * 3 / 8) / (3 + 6), (0 + 6 * 2 / 8) / (2 + 6), 2 / 8
    held_out = np.array([[0, 1, 2, 0], [2, 2, 0, 0]], dtype=np.uint16)  # the last looks ahead
    wanted = -(math.log(p01) + math.log(p12) + math.log(p22) + math.log(3 / 8)) / 4
    assert bigram_cross_entropy(logs, held_out, 2) == pytest.approx(wanted, rel=1e-12)


def test_bigrams_are_counted_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    split = numbered_split([3, 1, 4, 1, 5])
    tokens = split.corpus.tokens % 4
    small = Split("training", Corpus(tokens, split.corpus.offsets), split.documents)
    whole = Split.blocks
    monkeypatch.setattr(Split, "blocks", lambda self: whole(self, block_tokens=4))
    counts = count_bigrams(small, 4)
    wanted = Counter(itertools.pairwise(tokens.tolist()))
    assert {(a, b): counts[a, b] for a in range(4) for b in range(4) if counts[a, b]} == wanted


def test_the_bigram_beats_the_unigram_on_real_text() -> None:
    training, validation = split_corpus(load_corpus(None, "text", BYTES), 0.05, 0)
    logs = bigram_log_probabilities(count_bigrams(training, BYTES.vocabulary_size))
    held_out = windows(batches_of(validation, seed=0, length=256), 0, 200)
    assert 2.0 < bigram_cross_entropy(logs, held_out, 256) < 2.9

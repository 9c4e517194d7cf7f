"""Tokenizers: ours for others, any tokenizer.json for us, and text token by token."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.commands import TINY
from trainer.build.training_text import load_text
from trainer.checkpoint.hf.companions import END_OF_DOCUMENT, byte_tokenizer_files, tokenizer_files
from trainer.config.parse import config_parser, parse
from trainer.config.validate import validate
from trainer.data.bigram import byte_bigram_entropy
from trainer.data.bits_per_byte import bits_per_byte, bytes_per_token
from trainer.data.corpus import Corpus, Split, load_corpus
from trainer.data.file_tokenizer import FileTokenizer, load_tokenizer
from trainer.data.text_stream import TextStream
from trainer.data.tokens import ByteTokenizer, Tokenizer, is_of_bytes
from trainer.errors import DataError

BYTES = ByteTokenizer()
END, TOOL = "<|end|>", "<tool>"
GPT_2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
# As in the tokenizer.json of deepseek-ai/DeepSeek-V3.
DEEPSEEK_V3 = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        for pattern in (
            r"\p{N}{1,3}",
            "[一-龥\u3040-ゟ゠-ヿ]+",  # noqa: RUF001
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
            r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    ]
    + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
)
TEXTS = [
    "Hello world, hello 12 345 users.\nWhat's new?\n\n\nNo.\n\n  def f(x):\n    return y\n/path\n",
    "Grüße aus Köln: 日本語のテキスト、日本語の文章。\nEmoji 😀😀 and 👩‍👩‍👧 end.\r\nzwölf.\n",
]


def byte_level(cut: pre_tokenizers.PreTokenizer = GPT_2, size: int = 300) -> tokenizers.Tokenizer:
    """A byte-level BPE of `size` and 2 tokens; each character beyond ASCII is several."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=[END], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS[:1], trainer)
    tokenizer.add_tokens([tokenizers.AddedToken(TOOL, normalized=False), "é¥"])
    return tokenizer


def with_byte_fallback() -> tokenizers.Tokenizer:
    """As Llama 2: a blank is part of a word, and what the vocabulary lacks falls to bytes."""
    fallback = {f"<0x{byte:02X}>": byte for byte in range(256)}
    pieces = {piece: 256 + n for n, piece in enumerate([END, *"▁aber", "▁a", "▁ab"])}
    merges = [("▁", "a"), ("▁a", "b")]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=fallback | pieces, merges=merges, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([END])
    return tokenizer


def saved(folder: Path, tokenizer: tokenizers.Tokenizer, **beside: object) -> str:
    """`folder` with the tokenizer and, by default, its end of document."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in (beside or {"tokenizer_config": {"eos_token": END}}).items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return str(folder)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(saved(tmp_path_factory.mktemp("bpe"), byte_level()))


# Our bytes for others


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    for name, content in byte_tokenizer_files().items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text(json.dumps({"model_type": "deepseek_v3"}))
    return folder


@pytest.fixture(scope="module")
def transformers_bytes(exported: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(exported)


HARD_TEXT = " two  blanks, \n\r\n\t\0\x01\x7f\x85\xad é 日本 👩‍👩‍👧 \ufeff\u2028 I 'm . "


def test_the_exported_byte_tokenizer_is_ours_to_all_who_load_it(
    exported: Path, transformers_bytes: PreTrainedTokenizerBase
) -> None:
    library = tokenizers.Tokenizer.from_file(str(exported / "tokenizer.json"))
    again = load_tokenizer(str(exported))
    assert transformers_bytes.eos_token_id == BYTES.end_of_document == again.end_of_document
    assert len(transformers_bytes) == BYTES.vocabulary_size == again.vocabulary_size

    @settings(deadline=None, max_examples=200)
    @given(st.text(max_size=60).filter(lambda text: END_OF_DOCUMENT not in text))
    @example(HARD_TEXT)
    @example("".join(map(chr, range(0x800))))
    def same(text: str) -> None:
        wanted = BYTES.encode(text)
        assert library.encode(text).ids == transformers_bytes(text).input_ids == wanted.tolist()
        assert np.array_equal(again.encode(text), wanted)
        assert library.decode(wanted.tolist()) == transformers_bytes.decode(wanted) == text
        assert again.decode(np.append(wanted, BYTES.end_of_document)) == text.encode()

    same()


def test_the_end_of_document_written_as_text_stays_text(
    exported: Path, transformers_bytes: PreTrainedTokenizerBase
) -> None:
    text = f"a{END_OF_DOCUMENT}b"
    assert transformers_bytes(text).input_ids == [97, 256, 98]  # a special token to others
    assert load_tokenizer(str(exported)).encode(text).tolist() == list(text.encode())


# Any tokenizer.json


def test_text_gets_the_tokens_of_the_file_and_no_others(tmp_path: Path) -> None:
    library = byte_level()
    plain = library.encode(TEXTS[1]).ids
    library.enable_truncation(5)
    library.enable_padding(length=500)
    library.post_processor = processors.TemplateProcessing(
        single=f"{END} $A {END}", special_tokens=[(END, library.token_to_id(END))]
    )
    tokenizer = load_tokenizer(saved(tmp_path, library))
    assert tokenizer.encode(TEXTS[1]).tolist() == plain
    assert tokenizer.encode(TEXTS[1].encode()).tolist() == plain
    ids = [tokens.tolist() for tokens in tokenizer.encode_documents([b"a", TEXTS[1].encode()])]
    assert ids == [tokenizer.encode("a").tolist(), plain]


@pytest.mark.parametrize("end", [END, TOOL], ids=["special", "ordinary"])
def test_no_text_holds_an_end_of_document(tmp_path: Path, end: str) -> None:
    config = {"eos_token": end}
    tokenizer = load_tokenizer(saved(tmp_path, byte_level(), tokenizer_config=config))
    tokens = tokenizer.encode(f"a{end}b")
    assert tokenizer.end_of_document not in tokens and tokens.size > 3
    assert tokenizer.decode(tokens).decode() == f"a{end}b"


def test_a_byte_level_token_is_its_bytes(bpe: Tokenizer) -> None:
    text = f"{HARD_TEXT} é¥ {TOOL} {TEXTS[1]}"
    tokens = bpe.encode(text)
    each = [bpe.decode(tokens[i : i + 1]) for i in range(tokens.size)]
    assert b"".join(each) == bpe.decode(tokens) == text.encode()
    assert b"\xf0" in b"".join(piece[:1] for piece in each if not is_utf8(piece))
    assert bpe.decode(np.append(tokens, bpe.end_of_document)) == text.encode()
    with pytest.raises(ValueError, match=str(bpe.vocabulary_size)):
        bpe.decode(np.array([bpe.vocabulary_size]))
    with pytest.raises(ValueError):
        bpe.encode("\ud83d")
    with pytest.raises(ValueError):
        bpe.encode(b"\xff")


def is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("cut", [GPT_2, DEEPSEEK_V3], ids=["gpt-2", "deepseek-v3"])
def test_a_long_document_in_pieces_has_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: pre_tokenizers.PreTokenizer
) -> None:
    monkeypatch.setattr("trainer.data.file_tokenizer.PIECE_CHARACTERS", 80)
    monkeypatch.setattr("trainer.data.file_tokenizer.BATCH_CHARACTERS", 300)
    tokenizer = load_tokenizer(saved(tmp_path, byte_level(cut, 400)))
    whole = ["".join(TEXTS * 12), "", "short", "hello\nworld\n" * 40]
    cut_anywhere = ["x" * 399, "x" * 160, "end"]  # but the text stays
    texts = whole + cut_anywhere
    encoded = list(tokenizer.encode_documents(text.encode() for text in texts))
    assert len(encoded) == len(texts)
    for text, tokens in zip(whole, encoded):
        assert np.array_equal(tokens, tokenizer.encode(text)), text
    assert [tokenizer.decode(tokens).decode() for tokens in encoded] == texts


def test_a_large_vocabulary_has_tokens_of_32_bits(tmp_path: Path) -> None:
    words = tokenizers.Tokenizer(
        models.WordLevel({"a": 1, "b": 70_000, END: 70_001}, unk_token=END)
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = load_tokenizer(saved(tmp_path / "words", words))
    (tmp_path / "text.jsonl").write_text('{"text": "a b"}\n{"text": "b"}\n')
    corpus = load_corpus(str(tmp_path / "text.jsonl"), "text", tokenizer)
    assert tokenizer.vocabulary_size == 70_002 and corpus.tokens.dtype == np.uint32
    assert corpus.tokens.tolist() == [1, 70_000, 70_001, 70_000, 70_001]
    assert corpus.offsets.tolist() == [0, 3, 5]


# Where the end of a document is written, and what is wrong


@pytest.mark.parametrize(
    "beside",
    [
        {"tokenizer_config": {"eos_token": TOOL}, "config": {"eos_token_id": 0}},
        {"tokenizer_config": {"eos_token": {"content": TOOL, "special": True}}},
        {"generation_config": {"eos_token_id": 300}, "config": {"eos_token_id": 0}},
        {"tokenizer_config": {"eos_token": None}, "generation_config": {"eos_token_id": [300, 0]}},
        {"generation_config": {}, "config": {"eos_token_id": 300}},
    ],
)
def test_the_end_of_document_is_found(tmp_path: Path, beside: dict[str, object]) -> None:
    path = saved(tmp_path, byte_level(), **beside)
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, FileTokenizer)
    assert tokenizer.library.id_to_token(300) == TOOL and tokenizer.end_of_document == 300
    assert load_tokenizer(str(Path(path) / "tokenizer.json")).end_of_document == 300


def break_file(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "tokenizer.json").write_bytes(content)


def config_of(content: str, name: str = "tokenizer_config") -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / "tokenizer_config.json").unlink()
        (folder / f"{name}.json").write_text(content)

    return write


def only_sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), ["no tokenizer.json", "data.tok"]),
        (only_sentencepiece, ["tokenizer.model", "save_pretrained"]),
        (break_file(b'{"model": 3}'), ["tokenizer.json", "not a tokenizer"]),
        (break_file(b"\xff\xfe"), ["tokenizer.json", "not a tokenizer"]),
        (config_of("{"), ["tokenizer_config.json", "not JSON"]),
        (config_of("[]"), ["tokenizer_config.json", "list"]),
        (config_of("{}"), ["ends a document", "tokenizer_config.json", "eos_token"]),
        (config_of('{"eos_token": "</s>"}'), ["tokenizer_config.json", "'</s>'"]),
        (config_of('{"eos_token": 3}'), ["tokenizer_config.json", "3"]),
        (config_of('{"eos_token_id": 9999}', "config"), ["/config.json", "9999"]),
        (config_of('{"eos_token_id": []}', "generation_config"), ["generation_config", "[]"]),
    ],
)
def test_a_bad_tokenizer_is_one_line_that_names_the_file(
    tmp_path: Path, spoil: Callable[[Path], object], words: list[str]
) -> None:
    path = saved(tmp_path / "bad", byte_level())
    spoil(tmp_path / "bad")
    with pytest.raises(DataError) as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)
    for word in [path, *words]:
        assert word in str(caught.value), caught.value


def test_a_path_that_is_not_there_names_the_key() -> None:
    with pytest.raises(DataError, match=r"/nowhere/at\.json does not exist.*data\.tokenizer"):
        load_tokenizer("/nowhere/at.json")


# Token by token


def streamed(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.push(token) for token in tokens), stream.end()]


def test_a_stream_gives_the_text_and_never_half_a_character(bpe: Tokenizer, tmp_path: Path) -> None:
    fallback = load_tokenizer(saved(tmp_path, with_byte_fallback()))
    for tokenizer in (BYTES, bpe, fallback):
        for text in (TEXTS[1], "a aber 😀 ab\n aé", " 日本 "):
            tokens = [int(token) for token in tokenizer.encode(text)]
            tokens.insert(len(tokens) // 2, tokenizer.end_of_document)
            parts = streamed(tokenizer, tokens)
            assert "".join(parts) == text and "\ufffd" not in text
            assert sum(map(bool, parts)) > len(text) / 8, "it comes in parts"
    assert streamed(BYTES, [0x61, 0xF0, 0x9F, 0x98, 0x80, 0xE2]) == ["a", *[""] * 3, "😀", "", "�"]


def test_a_stream_of_any_tokens_is_what_they_decode_to(bpe: Tokenizer) -> None:
    # Mostly bytes of which characters begin and go on, so that some become whole.
    awkward = [0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xEF, 0xBF, 0xBD, 0x61]
    of_bpe = [int(t) for byte in (b"\xe2\x82\xac".decode(), "😀", "é") for t in bpe.encode(byte)]

    @settings(deadline=None)
    @given(st.lists(st.integers(0, 256) | st.sampled_from(awkward)))
    def of_bytes(tokens: list[int]) -> None:
        whole = BYTES.decode(np.array(tokens, dtype=np.int64)).decode(errors="replace")
        assert "".join(streamed(BYTES, tokens)) == whole

    @settings(deadline=None)
    @given(st.lists(st.integers(0, bpe.vocabulary_size - 1) | st.sampled_from(of_bpe)))
    def of_tokens(tokens: list[int]) -> None:
        whole = bpe.decode(np.array(tokens, dtype=np.int64)).decode(errors="replace")
        assert "".join(streamed(bpe, tokens)) == whole

    of_bytes()
    of_tokens()


def test_broken_characters_do_not_silence_a_stream(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(saved(tmp_path, with_byte_fallback()))
    parts = streamed(tokenizer, [0xE2] * 40 + tokenizer.encode("ab").tolist())
    assert all(any(parts[at : at + 4]) for at in range(36)) and parts[-2].endswith("ab")
    # To this decoder a broken character breaks those before it; what is printed stays printed.
    assert "".join(streamed(tokenizer, [0xF0, 0x9F, 0x98, 0x80, *[0xE2] * 4])) == "😀����"


# Measures of a loss


def test_targets_are_counted_in_bytes_of_text(bpe: Tokenizer, tmp_path: Path) -> None:
    fallback = load_tokenizer(saved(tmp_path, with_byte_fallback()))
    for tokenizer, text in ((BYTES, TEXTS[1]), (bpe, TEXTS[1]), (fallback, "ab aber a aber ab")):
        tokens = tokenizer.encode(text)
        tokens = np.insert(tokens, 3, tokenizer.end_of_document)  # a target without bytes
        length = tokens.size - 1
        windows = np.stack([np.append(tokens, tokens[:2])] * 3)  # the last two look ahead
        wanted = len(text.encode()) - len(tokenizer.decode(tokens[:1]))
        assert bytes_per_token(tokenizer, windows, length) == pytest.approx(wanted / length)
    assert bits_per_byte(2 * np.log(2), 4.0) == pytest.approx(0.5)
    only_ends = np.full((2, 3), BYTES.end_of_document)
    assert bits_per_byte(1.0, bytes_per_token(BYTES, only_ends, 2)) is None


def test_bigrams_are_of_bytes_whoever_gives_the_tokens(exported: Path, bpe: Tokenizer) -> None:
    from_file = load_tokenizer(str(exported))
    assert is_of_bytes(BYTES) and is_of_bytes(from_file) and not is_of_bytes(bpe)
    tokens = BYTES.encode(TEXTS[1] * 9)
    text = Split("training", Corpus(tokens, np.array([0, tokens.size])), np.array([0]))
    windows = np.stack([tokens[:40], tokens[40:80]])
    entropy = byte_bigram_entropy(text, windows, 39, from_file)
    assert entropy is not None and 0 < entropy < np.log(257)
    assert entropy == byte_bigram_entropy(text, windows, 39, BYTES)
    assert byte_bigram_entropy(text, windows, 39, bpe) is None


# In a run


def test_a_run_reads_tokens_and_its_vocabulary_must_fit(tmp_path: Path, bpe: Tokenizer) -> None:
    (tmp_path / "text.txt").write_text("".join(TEXTS * 30))
    path = saved(tmp_path / "bpe", byte_level())
    given = ["--config", TINY, "--data.path", str(tmp_path / "text.txt"), "--data.tokenizer", path]
    parser = config_parser("test", "", "")
    config = parse(parser, [*given, "--model.vocab_size", "302"])[0]
    validate(config, 2)
    text = load_text(config)
    tokens = bpe.encode("".join(TEXTS * 30)).size + 1
    (source,) = text.sources
    assert source.split is not None and source.split.corpus.tokens.size == tokens
    assert f"{source.split.size:,} tokens to train on" in text.describe()
    assert text.bigram_entropy() is None
    of_bytes = load_text(parse(parser, given[:4])[0])
    assert "bytes to train on" in of_bytes.describe() and of_bytes.bigram_entropy() is not None
    with pytest.raises(DataError, match=r"model\.vocab_size = 301 .* 302 .*data\.tokenizer"):
        load_text(parse(parser, [*given, "--model.vocab_size", "301"])[0])
    small = parse(parser, [*given, "--model.vocab_size", "200"])[0]
    validate(small, 2)  # 257 is for bytes


# Files beside the weights


def test_the_files_of_a_tokenizer_are_known(tmp_path: Path) -> None:
    theirs = (
        "added_tokens.json", "chat_template.jinja", "generation_config.json", "merges.txt",
        "qwen.tiktoken", "special_tokens_map.json", "tokenizer.json", "tokenizer.model",
        "tokenizer_config.json", "vocab.json",
    )  # fmt: skip
    others = ("config.json", "model.safetensors", "tokenization_x.py", "README.md")
    for name in theirs + others:
        (tmp_path / name).write_text("{}")
    (tmp_path / "tokenizer.d.json").mkdir()
    assert [file.name for file in tokenizer_files(tmp_path)] == sorted(theirs)
    assert tokenizer_files(tmp_path / "nowhere") == []

"""What stands beside the weights of an export: the tokenizer of the run, and how text ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from tests.commands import TINY, finish, start
from trainer.checkpoint.hf.companions import byte_tokenizer_files, read_companions, tokenizer_of_run
from trainer.config.schema import Config, DataConfig, ModelConfig
from trainer.data.file_tokenizer import load_tokenizer
from trainer.errors import CheckpointError, ConfigError, DataError

SPECIAL = {"bos_token_id": 257, "eos_token_id": [258, 259], "max_position_embeddings": 64}


def _bpe(folder: Path, end: str, file: str = "tokenizer.json") -> Path:
    """A small tokenizer of its own, with an end of document of its own."""
    folder.mkdir(exist_ok=True)
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=270, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(["the cat sat on the mat, then the hat"] * 9, trainer)
    library.save(str(folder / file))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}))
    return folder


def _source(folder: Path) -> Path:
    """A checkpoint folder as far as what is beside its weights."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SPECIAL))
    (folder / "generation_config.json").write_text('{"eos_token_id": [258, 259], "top_p": 0.5}')
    return folder


def _config(init_from: Path | None, tokenizer: Path | None) -> Config:
    init, given = (None if path is None else str(path) for path in (init_from, tokenizer))
    return Config(model=ModelConfig(init_from=init), data=DataConfig(tokenizer=given))


def test_a_run_reads_text_as_the_checkpoint_it_starts_from(tmp_path: Path) -> None:
    """Or it would train on numbers that mean other text to everyone who has the weights."""
    source = _bpe(_source(tmp_path / "source"), "</s>")
    other = _bpe(tmp_path / "other", "<end>")
    assert tokenizer_of_run(_config(source, None)) == str(source)
    assert tokenizer_of_run(_config(source, other)) == str(other)
    assert tokenizer_of_run(_config(_source(tmp_path / "without"), None)) is None
    of_bytes = _source(tmp_path / "bytes")
    for name, content in byte_tokenizer_files().items():
        (of_bytes / name).write_bytes(content)
    assert tokenizer_of_run(_config(of_bytes, None)) is None  # is the built-in one
    assert tokenizer_of_run(_config(None, None)) is None


def test_the_export_has_the_tokenizer_of_the_run_alone(tmp_path: Path) -> None:
    source = _bpe(_source(tmp_path / "source"), "</s>")
    (source / "merges.txt").write_text("of the source")
    (source / "modeling_deepseek.py").write_text("code")
    kept = read_companions(_config(source, None))
    for again in (source, source / "tokenizer.json"):
        assert read_companions(_config(source, again)) == kept
    assert kept.base == SPECIAL
    names = {"generation_config.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"}
    assert kept.files.keys() == names
    assert all(content == (source / name).read_bytes() for name, content in kept.files.items())

    file = _bpe(tmp_path / "other", "<end>", "mine.json") / "mine.json"
    end = load_tokenizer(str(file)).end_of_document
    for init_from in (source, None):
        changed = read_companions(_config(init_from, file))
        assert changed.files["tokenizer.json"] == file.read_bytes()
        assert "merges.txt" not in changed.files
        generation = json.loads(changed.files["generation_config.json"])
        assert generation["eos_token_id"] == changed.base["eos_token_id"] == end


def test_without_a_tokenizer_the_export_has_that_of_bytes(tmp_path: Path) -> None:
    alone = read_companions(_config(None, None))
    assert alone.base["eos_token_id"] == 256
    started = read_companions(_config(_source(tmp_path / "source"), None))
    for name, content in byte_tokenizer_files().items():
        assert alone.files[name] == started.files[name] == content
    assert started.base == SPECIAL
    assert b"top_p" in started.files["generation_config.json"]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere/config\.json"):
        read_companions(_config(tmp_path / "nowhere", None))
    with pytest.raises(DataError, match=r"nowhere\.json"):
        read_companions(_config(None, tmp_path / "nowhere.json"))


def _in_cache(folder: Path) -> Path:
    """A checkpoint as huggingface_hub keeps it: the files of a snapshot are links to blobs."""
    snapshot = folder / "models--owner--name/snapshots/0a1b2c"
    snapshot.mkdir(parents=True)
    (folder / "models--owner--name/blobs").mkdir()
    for number, file in enumerate(_bpe(_source(folder / "plain"), "</s>").iterdir()):
        file.rename(folder / f"models--owner--name/blobs/{number:040x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:040x}")
    return snapshot


LINKS = {  # what tokenizer.model is in a checkpoint, and whether it goes along
    "a file below": ("below/secret", True),
    "a blob of its repository": ("../../blobs/secret", True),
    "a file beside the checkpoint": ("../secret", False),
    "a file of its repository that is no blob": ("../../secret", False),
    "a blob of another repository": ("../../../models--other/blobs/secret", False),
    "a file far away": ("{far}/secret", False),
    "by way of a folder that is a link": ("away/secret", False),
    "nothing": ("nowhere", False),
    "a folder": ("below", False),
    "itself": ("tokenizer.model", False),
}


@pytest.mark.parametrize("case", LINKS)
def test_companions_that_are_links_out_of_the_checkpoint_are_refused(
    tmp_path: Path, case: str
) -> None:
    source = _in_cache(tmp_path / "cache")
    expected = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert read_companions(_config(source, None)).files.keys() == expected
    far = tmp_path / "far"
    for place in ("below", "..", "../..", "../../blobs", "../../../models--other/blobs", str(far)):
        (source / place).mkdir(parents=True, exist_ok=True)
        (source / place / "secret").write_text("secret")
    (source / "away").symlink_to(far)
    target, goes_along = LINKS[case]
    (source / "tokenizer.model").symlink_to(target.format(far=far))
    if goes_along:
        assert read_companions(_config(source, None)).files["tokenizer.model"] == b"secret"
        return
    link = source / "tokenizer.model"
    with pytest.raises(CheckpointError, match=f"^{link}: is a link to /.*, which is not a file of"):
        read_companions(_config(source, None))
    with pytest.raises(CheckpointError, match=f"^{link}: is a link to"):
        read_companions(_config(None, source))


def test_a_tokenizer_that_the_user_names_may_be_a_link(tmp_path: Path) -> None:
    real = _bpe(tmp_path / "real", "<end>")
    (tmp_path / "mine").mkdir()
    link = tmp_path / "mine/tokenizer.json"
    link.symlink_to(real / "tokenizer.json")
    (tmp_path / "mine/tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    files = read_companions(_config(None, link)).files
    assert files["tokenizer.json"] == (real / "tokenizer.json").read_bytes()


@pytest.mark.slow
def test_a_run_with_its_own_tokenizer_can_be_gone_on_with(tmp_path: Path) -> None:
    """The whole way: train on a tokenizer file, start again from the weights, generate."""
    _bpe(tmp_path / "tokens", "<end>", "mine.json")
    (tmp_path / "text.txt").write_text("the cat sat on the mat, then on the hat\n" * 500)
    tiny = ("--config", TINY, "--mesh.expert", "1", "--run.steps", "1", "--model.vocab_size", "280")
    tiny += ("--data.path", "text.txt")
    code, out, err = finish(start(tmp_path, *tiny, "--data.tokenizer", "tokens/mine.json"))
    assert code == 0 and "tokens to train on" in out and "bigram" not in out, err
    again = ("--model.init_from", "runs/tiny/weights", "--run.name", "again")
    longer = ("--data.sequence_length", "24", "--checkpoint.export_dtype", "fp8")
    code, again_out, err = finish(start(tmp_path, *tiny, *again, *longer))
    assert (
        code == 0
        and again_out.split("tokens to train")[0].split("data:")[1]
        == (out.split("tokens to train")[0].split("data:")[1])
    ), err
    config = json.loads((tmp_path / "runs/again/weights/config.json").read_text())
    assert config["max_position_embeddings"] == 24
    third = ("--model.init_from", "runs/again/weights", "--run.name", "third")
    assert finish(start(tmp_path, *tiny, *third))[0] == 0  # from fp8
    arguments = ("--checkpoint", "runs/third/weights", "--prompt", "the cat", "--json")
    code, out, err = finish(start(tmp_path, *arguments, script="launch/generate.py"))
    assert code == 0 and json.loads(out)["prompt_tokens"] < len("the cat"), err

"""Config files: values by the type of their key, `extends`, and what is no config is one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from trainer.config.config_file import read_config_file, with_extended
from trainer.config.keys import keys
from trainer.config.parse import config_parser, parse, to_yaml
from trainer.config.schema import Config
from trainer.errors import ConfigError


def write(folder: Path, content: str | bytes, name: str = "some.yaml") -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def problem(path: str | Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config_file(str(path))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("metrics: {wandb: off}", "metrics.wandb", "off"),
        ("metrics: {wandb: 'off'}", "metrics.wandb", "off"),
        ("run: {name: 123}", "run.name", "123"),
        ("run: {name: 1e3}", "run.name", "1e3"),
        ("run: {name: on}", "run.name", "on"),
        ("run: {overwrite: True}", "run.overwrite", True),
        ("run: {steps: 010}", "run.steps", 10),
        ("run: {steps: 1_000}", "run.steps", 1000),
        ("optimizer: {lr: 1e-3}", "optimizer.lr", 1e-3),
        ("optimizer: {lr: 1}", "optimizer.lr", 1.0),
        ("optimizer: {betas: [0, 9e-1]}", "optimizer.betas", (0.0, 0.9)),
        ("pipeline: {layers_per_stage: [1, 2]}", "pipeline.layers_per_stage", [1, 2]),
        ("data: {path: }", "data.path", None),
        ("data: {path: ~}", "data.path", None),
        ("data: {path: 'null'}", "data.path", "null"),
        ("data: {path: 2024-01-01}", "data.path", "2024-01-01"),
        ("model: {attention: {q_lora_rank: null}}", "model.attention.q_lora_rank", None),
    ],
)
def test_a_value_is_what_its_key_says_and_not_what_yaml_guesses(
    tmp_path: Path, line: str, key: str, value: Any
) -> None:
    (found,) = read_config_file(write(tmp_path, line)).items()
    assert found == (key, value) and type(found[1]) is type(value)
    parser = config_parser("test", "", "")
    _, namespace = parse(parser, ["--config", write(tmp_path, line)])
    again = write(tmp_path, to_yaml(parser, namespace), "again.yaml")
    assert read_config_file(again)[key] == value, "the resolved config reads back"


@pytest.mark.parametrize("blank", ["", "~", "null"])
@pytest.mark.parametrize("key", [key for key in keys(Config) if not key.optional], ids=str)
def test_a_key_that_needs_a_value_refuses_none(tmp_path: Path, key: Any, blank: str) -> None:
    *sections, last = key.name.split(".")
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(sections)]
    lines.append(f"{'  ' * len(sections)}{last}: {blank}")
    line = problem(write(tmp_path, "\n".join(lines)))
    assert f"some.yaml, line {len(lines)}: {key.name} must be" in line
    assert "not blank or null" in line


BOMB = "a0: &a0 [1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["some.yaml: must be keys", "got nothing"]),
        ("- a\n", ["keys", "got a list"]),
        ("text", ["keys", "got 'text'"]),
        ("model: {moe: 3}", ["line 1: model.moe", "keys", "3"]),
        ("run:\n  steps: 3\nmodel:\n", ["line 3: model", "got nothing"]),
        ("run: [steps: 3]", ["run", "got a list"]),
        ("model: [", ["line 1", "YAML"]),
        ("run: {}\n---\nrun: {}", ["line 2", "another document"]),
        (b"\xff\xfe", ["UTF-8", "byte 0"]),
        (b"\x7fELF\x00\x01", ["YAML"]),
        ("? [a]\n: 3", ["line 1", "a key must be a word"]),
        ("model:\n  dim: 8\nmodel:\n  layers: 2\n", ["line 3", "'model'", "a second time"]),
        ("run:\n  steps: 8\n  steps: 9\n", ["line 3", "'steps'", "a second time"]),
        ("model:\n  moe:\n    expers: 3\n", ["line 3", "'model.moe.expers'", "moe.experts?"]),
        ("model: {heads: 3}", ["'model.heads'", "did you mean model.attention.heads?"]),
        ("modle: {}", ["'modle'", "did you mean model?"]),
        ("extend: other.yaml", ["did you mean extends?"]),
        ("run:\n  dtype: float64", ["line 2", "run.dtype is now called precision.parameters"]),
        ("run: {steps: 4.0}", ["run.steps", "a whole number, written as 4, got '4.0'"]),
        ("run: {steps: 1.5}", ["run.steps", "a whole number, got '1.5'"]),
        ("run: {steps: 0x10}", ["run.steps", "a whole number, got '0x10'"]),
        ("run: {steps: [5]}", ["run.steps", "a whole number, got a list"]),
        ("run: {overwrite: yes}", ["run.overwrite", "true or false, got 'yes'"]),
        ("optimizer: {lr: .inf}", ["optimizer.lr", "a number", ".inf"]),
        ("optimizer: {betas: 0.9}", ["optimizer.betas", "a list of 2 numbers", "0.9"]),
        ("optimizer: {betas: [0.9]}", ["optimizer.betas", "a list of 2 numbers"]),
        ("optimizer: {betas: [0.9, ~]}", ["optimizer.betas", "a number, got '~'"]),
        (BOMB, ["line 1", "no key 'a0'"]),
        ("pipeline:\n  layers_per_stage: &a [*a, *a]", ["line 2", "layers_per_stage"]),
        ("run: &a\n  name: *a", ["run.name"]),
        ("model: &a\n  moe: *a", ["'model.moe.moe'"]),
        ("[" * 50_000, ["line 1", "nested deeper than 20"]),
        ("- " * 40_000, ["line 1", "nested deeper than 20"]),
        ("run: {name: !!python/object/apply:os.getcwd []}", ["line 1", "tags"]),
        ("run: {steps: !!int 3}", ["line 1", "tags"]),
        ("x" * 100_001, ["100,000 bytes"]),
        ("extends:\n", ["line 1", "extends must be the name of one file"]),
        ("run: {}\nextends: [a, b]", ["line 2", "extends must be the name of one file"]),
        ('extends: "a\\0b"', ["extends must be the name of one file"]),
        (
            "extends: nowhere.yaml",
            ["nowhere.yaml, which", "some.yaml extends: cannot be read (No such"],
        ),
        ('{"a\\nb": 3}', ["'a\\nb'"]),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_file_that_is_no_config_is_one_line_that_says_where(
    tmp_path: Path, content: str | bytes, words: list[str]
) -> None:
    line = problem(write(tmp_path, content))
    assert "some.yaml" in line and all(word in line for word in words), line


def test_what_is_no_file_of_text_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "fifo", "is a pipe"),
        (Path("/dev/zero"), "is a device"),
        (tmp_path / "no\nwhere", "No such file"),
    ):
        assert words in problem(path)


def test_a_file_changes_keys_of_the_one_that_it_extends(tmp_path: Path) -> None:
    write(tmp_path, "model: {dim: 8, moe: {experts: 4, top_k: 1}}\nrun: {steps: 3}", "a/base.yaml")
    write(tmp_path, "extends: base.yaml\nmodel: {moe: {experts: 6}}", "a/middle.yaml")
    top = write(tmp_path, "run: {name: top}\nextends: a/middle.yaml\nmodel: {dim: 16}")
    parser = config_parser("test", "", "")
    config, namespace = parse(parser, ["--config", top, "--run.steps", "7"])
    assert (config.model.dim, config.model.moe.experts, config.model.moe.top_k) == (16, 6, 1)
    assert (config.run.steps, config.run.name) == (7, "top")
    resolved = to_yaml(parser, namespace)
    assert "extends" not in resolved
    assert parse(parser, ["--config", write(tmp_path, resolved, "again.yaml")])[0] == config


def test_an_error_names_the_file_that_has_it(tmp_path: Path) -> None:
    write(tmp_path, "run: {}\nmodel: {dims: 8}", "base.yaml")
    line = problem(write(tmp_path, "extends: base.yaml"))
    assert "base.yaml, line 2: there is no key 'model.dims'; did you mean model.dim?" in line


@pytest.mark.parametrize("files", [1, 2, 3])
def test_a_cycle_of_files_is_one_line(tmp_path: Path, files: int) -> None:
    for i in range(files):
        write(tmp_path, f"extends: ./f{(i + 1) % files}.yaml", f"f{i}.yaml")
    assert "f0.yaml extends itself: " in problem(tmp_path / "f0.yaml")


def test_too_long_a_chain_is_one_line(tmp_path: Path) -> None:
    for i in range(40):
        write(tmp_path, f"extends: f{i + 1}.yaml", f"f{i}.yaml")
    assert "no more than 20 files" in problem(tmp_path / "f0.yaml")


def test_print_config_prints_what_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = config_parser("test", "", "")
    arguments = ["--config", write(tmp_path, "run: {name: 'off'}"), "--optimizer.lr", "1e-7"]
    with pytest.raises(SystemExit) as ended:
        parse(parser, [*arguments, "--print-config"])
    assert ended.value.code == 0
    printed = write(tmp_path, capsys.readouterr().out, "printed.yaml")
    assert parse(parser, ["--config", printed])[0] == parse(parser, arguments)[0]


def test_a_config_is_all_the_files_that_it_extends(tmp_path: Path) -> None:
    """A run that replaces its folder may have none of them in there."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "one.yaml").write_text("extends: sub/two.yaml")
    (tmp_path / "sub/two.yaml").write_text("extends: ../three.yaml")
    (tmp_path / "three.yaml").write_text("run: {steps: 3}")
    files = with_extended(str(tmp_path / "one.yaml"))
    assert [Path(file).name for file in files] == ["one.yaml", "two.yaml", "three.yaml"]
    assert all(Path(file).exists() for file in files)

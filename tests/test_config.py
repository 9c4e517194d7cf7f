"""Configs: what is shipped works, and what cannot work is one line that names the key."""

from __future__ import annotations

from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from parallel.schedule.generators import GENERATORS
from tests.commands import ROOT, TINY, finish, start
from trainer.config.derived import mesh_of
from trainer.config.parse import config_parser, parse, to_yaml
from trainer.config.schema import Config, PipelineConfig
from trainer.config.validate import validate
from trainer.errors import ConfigError
from trainer.model.partition import partition_layers

SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))


def config(*arguments: str) -> Config:
    return parse(config_parser("test", "", ""), arguments)[0]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_are_valid_for_their_own_world(path: Path) -> None:
    shipped = config("--config", str(path))
    validate(shipped, mesh_of(shipped).world)
    assert shipped.run.name == path.stem
    count = mesh_of(shipped).world
    head = path.read_text().split("\nrun:")[0]
    assert "launch/throughput.py" in head or (
        f"torchrun --nproc-per-node {count} " in head if count > 1 else "python " in head
    ), "its head says how to launch it"


def test_overrides_win_over_the_file_and_the_result_reads_back(tmp_path: Path) -> None:
    parser = config_parser("test", "", "")
    changed, namespace = parse(
        parser, ["--config", TINY, "--optimizer.lr", "5e-4", "--pipeline.layers_per_stage", "[1,1]"]
    )
    assert changed.optimizer.lr == 5e-4
    assert changed.pipeline.layers_per_stage == [1, 1]
    assert changed.model.dim == 16
    (tmp_path / "again.yaml").write_text(to_yaml(parser, namespace))
    assert config("--config", str(tmp_path / "again.yaml")) == changed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--optimizer.lrr", "1"), ["optimizer.lrr", "optimizer.lr"]),
        (("--optimizer.lr", "fast"), ["optimizer.lr", "float", "fast"]),
        (("--pipeline.schedule", "zigzag"), ["pipeline.schedule", "dualpipev", "zigzag"]),
        (("--config", "nowhere.yaml"), ["nowhere.yaml"]),
        (("--mesh.pipeline", "2"), ["mesh.pipeline", "torchrun --nproc-per-node 4"]),
        (("--model.moe.experts", "5"), ["model.moe.experts", "mesh.expert", "multiple of 2"]),
        (("--model.moe.groups", "3"), ["model.moe.groups"]),
        (("--model.moe.top_k", "9"), ["model.moe.top_k"]),
        (("--model.mtp.depth", "3"), ["model.mtp.depth", "0, 1 or 2"]),
        (("--model.attention.rope_head_dim", "3"), ["rope_head_dim", "even"]),
        (("--pipeline.micro_batches", "1"), ["pipeline.micro_batches", "2"]),
        (("--pipeline.schedule", "dualpipe"), ["mesh.pipeline", "dualpipev"]),
        (("--pipeline.layers_per_stage", "[2,2]"), ["pipeline.layers_per_stage", "model.layers"]),
        (("--model.layers", "1"), ["model.layers", "2 or more"]),
        (("--data.global_batch", "6"), ["data.global_batch", "multiple of 4"]),
        (("--data.validation_fraction", "1.5"), ["data.validation_fraction"]),
        (("--pipeline.schedule_file", "nowhere.json"), ["schedule file nowhere.json"]),
        (("--model.dim", "0"), ["model.dim", "more than 0"]),
        (("--run.name", "a/b"), ["run.name"]),
        (("--run.name", "two\nlines"), ["run.name"]),
        (("--run.see", "1"), ["run.see", "run.seed"]),
        (("--run.seed", str(2**64)), ["run.seed"]),
        (("--pipeline.micro_batches", str(10**9)), ["pipeline.micro_batches"]),
        (("--model.vocab_size", "256"), ["model.vocab_size", "257"]),
    ],
)
def test_a_bad_config_is_one_line_that_names_the_key(
    arguments: tuple[str, ...], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(config("--config", TINY, *arguments), 2)
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line, line


def test_an_unknown_key_in_a_file_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("model:\n  moe:\n    expers: 3\n")
    with pytest.raises(ConfigError, match=r"model.*moe\.expers") as caught:
        config("--config", str(tmp_path / "bad.yaml"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["bad.yaml", "keys"]),
        (b"- a\n", ["bad.yaml", "['a']"]),
        (b"model: {moe: 3}\n", ["bad.yaml", "model: moe", "3"]),
        (b"\xff\xfe", ["bad.yaml", "YAML"]),
        (b"model: [", ["bad.yaml", "YAML"]),
        (b"model:\n  dim: 8\nmodel:\n  layers: 2\n", ["bad.yaml", "line 3", "model", "second"]),
    ],
)
def test_a_file_that_is_no_config_is_one_line_with_its_name(
    tmp_path: Path, content: bytes, words: list[str]
) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        config("--config", str(tmp_path / "bad.yaml"))
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_command_exits_with_2_and_one_line_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    process = start(tmp_path, "--config", TINY, "--model.dim", "-1")
    code, out, err = finish(process)
    assert (code, out) == (2, "") and err.startswith("train: model.dim"), err
    assert len(err.splitlines()) == 1


def test_help_documents_every_key_with_its_default(tmp_path: Path) -> None:
    code, out, _ = finish(start(tmp_path, "--help"))
    text = " ".join(out.split())
    assert code == 0 and "examples:" in text
    assert "--model.moe.bias_gamma BIAS_GAMMA" in text
    assert "Step of the router bias" in text and "default: 0.001" in text


def test_the_config_knows_every_schedule() -> None:
    annotation = get_type_hints(PipelineConfig)["schedule"]
    assert set(get_args(annotation)) == set(GENERATORS)


def test_layers_are_spread_with_the_odd_ones_first() -> None:
    assert [len(partition_layers(7, 3, 0).stage_layers(stage)) for stage in range(3)] == [3, 2, 2]
    parts = partition_layers(5, 2, 2, [1, 4])
    assert list(parts.stage_layers(1)) == [1, 2, 3, 4] and list(parts.mtp_layers()) == [5, 6]

"""Configs: what is shipped works, and what cannot work is one line that names the key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from parallel.ops.precision import PRECISIONS
from parallel.schedule.generators import GENERATORS
from tests.commands import ROOT, TINY, finish, start
from trainer.config.derived import mesh_of
from trainer.config.keys import keys
from trainer.config.parse import config_parser, parse, to_yaml
from trainer.config.schema import Config, ModelConfig, RunConfig
from trainer.config.validate import model_problems, validate
from trainer.config.values import NotAValue, read_text
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
    started = re.search(r"torchrun (?:--nnodes (\d+) )?--nproc-per-node (\d+) ", head)
    assert "launch/throughput.py" in head or (
        started is not None and int(started[1] or 1) * int(started[2]) == count
        if count > 1
        else "python " in head
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


def problem(*arguments: str) -> str:
    """The line that a config ends with, for as many processes as it asks for."""
    with pytest.raises(ConfigError) as caught:
        parsed = config(*arguments)
        validate(parsed, mesh_of(parsed).world)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    return str(caught.value)


FP8_DEEPEP = "--mesh.dispatch", "deepep", "--mesh.dispatch_dtype", "fp8"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--optimizer.lr", "fast"), ["optimizer.lr", "a number", "fast"]),
        (("--pipeline.schedule", "zigzag"), ["pipeline.schedule", "dualpipev", "zigzag"]),
        (("--model.moe.experts", "5"), ["model.moe.experts", "mesh.expert", "multiple of 2"]),
        (("--model.moe.groups", "3"), ["model.moe.groups"]),
        (("--mesh.dispatch", "hierarchical"), ["cluster.gpus_per_node", "all_to_all"]),
        (
            ("--mesh.dispatch", "hierarchical", "--cluster.gpus_per_node", "2"),
            ["cluster.gpus_per_node", "mesh.expert = 2", "got 2", "all_to_all"],
        ),
        (("--mesh.context", "3"), ["mesh.context", "divide the 2 data ranks"]),
        (
            ("--mesh.context", "2", "--data.sequence_length", "18"),
            ["data.sequence_length", "multiple of 4, such as 20"],
        ),
        (("--mesh.context", "2", "--data.mask_documents"), ["mask_documents", "mesh.context"]),
        (("--mesh.context", "2", "--metrics.sample_every", "5"), ["metrics.sample_every"]),
        (("--data.path", "x", "--data.mixture", "['a: x at 1']"), ["data.path", "data.mixture"]),
        (("--data.mixture", "['a: x']"), ["data.mixture", "code: shards/code at 0.3"]),
        (("--mesh.dispatch", "deepep"), ["precision.parameters", "bfloat16", "hierarchical"]),
        ((*FP8_DEEPEP, "--precision.parameters", "bfloat16"), ["model.dim", "same"]),
        (("--mesh.dispatch", "deepep", "--run.device", "cpu"), ["run.device", "hierarchical"]),
        (("--model.moe.top_k", "9"), ["model.moe.top_k"]),
        (("--model.mtp.depth", "3"), ["model.mtp.depth", "from 0 to 2"]),
        (("--model.attention.rope_head_dim", "3"), ["rope_head_dim", "even"]),
        (("--pipeline.micro_batches", "0"), ["pipeline.micro_batches", "from 1"]),
        (("--pipeline.schedule", "dualpipe"), ["mesh.pipeline", "dualpipev"]),
        (("--pipeline.layers_per_stage", "[2,2]"), ["pipeline.layers_per_stage", "model.layers"]),
        (("--pipeline.layers_per_stage", "[2,0]"), ["pipeline.layers_per_stage", "from 1"]),
        (("--model.layers", "1"), ["model.layers", "2 or more"]),
        (("--data.global_batch", "6"), ["data.global_batch", "multiple of 4"]),
        (("--data.validation_fraction", "1.5"), ["data.validation_fraction"]),
        (("--pipeline.schedule_file", "nowhere.json"), ["schedule file nowhere.json"]),
        (("--model.dim", "0"), ["model.dim", "from 1 to 1,000,000", "got 0"]),
        (("--run.name", "a/b"), ["run.name"]),
        (("--run.name", ".."), ["run.name"]),
        (("--run.name", "two\nlines"), ["run.name"]),
        (("--data.path", "a\x1b[31mb"), ["data.path", "plain text", "x1b"]),
        (("--data.path", ""), ["data.path", "got ''"]),
        (("--model.vocab_size", "256"), ["model.vocab_size", "257"]),
    ],
)
def test_a_bad_config_is_one_line_that_names_the_key(
    arguments: tuple[str, ...], words: list[str]
) -> None:
    line = problem("--config", TINY, *arguments)
    assert all(word in line for word in words), line


def test_another_number_of_processes_is_one_line_that_says_how_to_launch() -> None:
    with pytest.raises(ConfigError, match=r"mesh\.pipeline.*torchrun --nproc-per-node 4"):
        validate(config("--config", TINY, "--mesh.pipeline", "2"), 2)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", ".nan", "1e999"])
def test_no_number_may_be_nan_or_infinite(number: str) -> None:
    for key in keys(Config):
        if key.kind is float:
            with pytest.raises(NotAValue, match="must be a number"):
                read_text(key, number)
    assert "optimizer.lr must be a number" in problem(f"--optimizer.lr={number}")


def test_limits_hold_for_configs_that_are_not_read_from_text() -> None:
    made = Config(run=RunConfig(timeout=float("nan")))
    with pytest.raises(ConfigError, match=r"run\.timeout must be more than 0.*nan"):
        validate(made, 1)
    made = Config(run=RunConfig(steps=None))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"run\.steps must not be null"):
        validate(made, 1)
    assert "model.dim must be" in next(model_problems(ModelConfig(dim=0)))


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"model.layers": 10**8}, "model.layers"),
        ({"model.layers": 10**4, "model.moe.experts": 10**4}, "model.moe.experts"),
        ({"model.moe.experts": 10**9}, "model.moe.experts"),
        ({"model.vocab_size": 10**12}, "model.vocab_size"),
        ({"model.attention.heads": 10**9}, "model.attention.heads"),
        ({"data.sequence_length": 10**12}, "data.sequence_length"),
        ({"mesh.pipeline": 10**6}, "mesh.pipeline"),
        ({"pipeline.micro_batches": 10**9}, "pipeline.micro_batches"),
        (
            {"mesh.pipeline": 1024, "pipeline.micro_batches": 1024, "data.global_batch": 1024},
            "mesh.pipeline x pipeline.micro_batches",
        ),
        ({"run.seed": 2**64}, "run.seed"),
        ({"run.steps": "9" * 5000}, "run.steps"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_made_of_them(
    options: dict[str, object], names: str
) -> None:
    assert names in problem(*(f"--{key}={value}" for key, value in options.items()))


def test_every_key_is_documented_and_has_limits() -> None:
    for key in keys(Config):
        assert key.doc, f"{key.name} has no text below it"
        words = key.kind is bool or get_origin(key.kind) is Literal
        assert words or key.limit, f"{key.name} takes any {key.kind}"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--optimizer.lrr 1", "there is no option --optimizer.lrr; did you mean --optimizer.lr?"),
        ("--lr=1", "there is no option --lr; did you mean --optimizer.lr?"),
        ("--run.see 1", "there is no option --run.see; did you mean --run.seed?"),
        ("--print_config", "there is no option --print_config; did you mean --print-config?"),
        ("--zzz", "there is no option --zzz"),
        ("--model {}", "--model is a section: set its keys one by one, as in --model.vocab_size"),
        (
            "--run.dtype float64",
            "--run.dtype is now called --precision.parameters: set that instead",
        ),
        (
            "configs/x.yaml",
            "'configs/x.yaml' is not an option; did you mean --config configs/x.yaml?",
        ),
        ("--run.steps 3 again", "'again' is not an option"),
        ("--run.steps", "--run.steps needs a value"),
        ("--config", "--config needs a value"),
        (
            "--config a.yaml --config=b.yaml",
            "--config is given 2 times: give one file, which may say `extends: OTHER`",
        ),
        (
            "--config nowhere.yaml",
            "config file nowhere.yaml: cannot be read (No such file or directory)",
        ),
        ("--run.overwrite on", "run.overwrite must be true or false, got 'on'"),
        ("--run.steps 1e3", "run.steps must be a whole number, written as 1000, got '1e3'"),
        ("--run.steps null", "run.steps must be a whole number, not blank or null"),
    ],
)
def test_a_bad_command_line_is_one_line_that_says_what_was_meant(arguments: str, line: str) -> None:
    assert problem(*arguments.split()) == line


@pytest.mark.parametrize(
    ("arguments", "overwrite"),
    [
        (["--run.overwrite"], True),
        (["--run.overwrite", "--run.steps", "5"], True),
        (["--run.overwrite", "true"], True),
        (["--run.overwrite=False"], False),
        ([], False),
    ],
)
def test_a_switch_is_a_flag_or_has_a_value(arguments: list[str], overwrite: bool) -> None:
    assert config(*arguments).run.overwrite is overwrite


def test_help_documents_every_key_with_its_limits_and_its_default() -> None:
    text = " ".join(config_parser("test", "", "").format_help().split())
    assert (
        "--model.moe.bias_gamma BIAS_GAMMA Step of the router bias that balances the experts "
        "without a loss; 0 leaves it alone. (type: a number, from 0 to 1,000, default: 0.001)"
    ) in text
    assert all(f"--{key.name} " in text for key in keys(Config))


def test_the_command_exits_with_2_and_one_line_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    process = start(tmp_path, "--config", TINY, "--model.dim", "-1")
    code, out, err = finish(process)
    assert (code, out) == (2, "") and err.startswith("train: model.dim"), err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "registry"),
    [("pipeline.schedule", GENERATORS), ("precision.parameters", PRECISIONS)],
)
def test_the_config_knows_all_that_is_registered(name: str, registry: Mapping[str, Any]) -> None:
    (key,) = (key for key in keys(Config) if key.name == name)
    assert set(get_args(key.kind)) == set(registry)


def test_layers_are_spread_with_the_odd_ones_first() -> None:
    assert [len(partition_layers(7, 3, 0).stage_layers(stage)) for stage in range(3)] == [3, 2, 2]
    parts = partition_layers(5, 2, 2, [1, 4])
    assert list(parts.stage_layers(1)) == [1, 2, 3, 4] and list(parts.mtp_layers()) == [5, 6]

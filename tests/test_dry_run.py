"""A dry run of a rank says what the rank does in a real run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from launch.train import main
from parallel.ranks.process import Process
from tests.distributed import run_world
from trainer.build.layout import build
from trainer.config.parse import config_parser, parse
from trainer.config.schema import Config
from trainer.dry import collectives
from trainer.dry.device import pretended_gpu
from trainer.dry.rank import dry_step
from trainer.dry.record import Record
from trainer.dry.table import as_json, as_lines
from trainer.objective.pretraining import TOKENS
from trainer.recipe.progress import Progress
from trainer.run.step import Trainer

ROOT = Path(__file__).parent.parent
TINY = str(ROOT / "tests" / "tiny.yaml")


def config_of(*arguments: str, file: str = TINY) -> Config:
    return parse(config_parser("test", "", ""), ["--config", file, *arguments])[0]


FOUR_RANKS = (
    "--mesh.pipeline", "2", "--pipeline.schedule", "dualpipe", "--pipeline.micro_batches", "4",
    "--data.global_batch", "8", "--model.layers", "3", "--optimizer.zero", "off",
)  # fmt: skip


def dry(process: Process, config: Config, rank: int) -> Record:
    return dry_step(config, rank, pretended_gpu())


def dry_run_of(config: Config, rank: int) -> Record:
    """In a process of its own, since torch then knows one more device."""
    record: Record = run_world(1, dry, config, rank)[0]
    return record


# ---- against a real run ----


class Listener(TorchDispatchMode):
    """Keeps what a real run sends: kind, group, type, and elements where no routing decides."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank, self.calls = rank, list[tuple[Any, ...]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            started = collectives.read(func, args)
            tensor, ranks = (started.sent or started.received)[0], started.group
            if started.peer is not None:
                other = ranks[started.peer]
                ranks = (self.rank, other) if started.kind == "send" else (other, self.rank)
            rows = started.kind == "all-to-all"
            elements = tensor[:1].numel() if rows else tensor.numel()
            self.calls.append((started.kind, ranks, str(tensor.dtype)[6:], elements))
        return func(*args, **(kwargs or {}))


def real(process: Process, config: Config) -> list[tuple[Any, ...]]:
    layout = build(config, process, torch.device("cpu"))
    trainer = Trainer(layout)
    length = config.data.sequence_length + 1 + config.model.mtp.depth
    tokens = torch.arange(layout.sequences * length).view(layout.sequences, length)
    with Listener(process.rank) as listener:
        trainer.step(Progress(), lambda number: {TOKENS: tokens + number})
    return listener.calls


def test_a_dry_run_calls_what_a_real_run_calls() -> None:
    """Same collectives and messages, in the same order, of the same sizes."""
    config = config_of(*FOUR_RANKS)
    calls = run_world(4, real, config)
    for rank in (0, 3):
        seen = [(c.kind, c.ranks, c.dtype, c.elements) for c in dry_run_of(config, rank).calls]
        assert seen == calls[rank]


# ---- what it finds ----


def test_the_host_waits_once_in_a_forward_of_an_moe_layer_and_nowhere_else_in_layers() -> None:
    """For the counts, with layer, pass and line; not in dense layers (0), not in a backward."""
    arguments = ("--precision.parameters", "bfloat16", "--model.layers", "3")
    record = dry_run_of(config_of(*arguments, "--model.mtp.depth", "1"), 0)
    found = {(w.where.layer, w.where.label, w.what, w.line.split(":")[0]): n
             for w, n in record.waits.items() if w.where.layer}  # fmt: skip
    counts = "F", "copy to the host", "parallel/expert/counts.py"
    assert found == {(layer, *counts): 2 for layer in ("layer 1", "layer 2", "MTP 1")}


def test_what_is_found_is_shown_by_kind_of_layer() -> None:
    config = config_of(*FOUR_RANKS)
    record = dry_run_of(config, 2)
    shown = as_json(record, config.model)
    sends = {(m["source"], m["destination"]): m["count"] for m in shown["messages"]}
    assert sends == {(0, 2): 4, (2, 0): 4}
    assert {wait["layer"] for wait in shown["host_waits"]} == {
        "MoE layer",
        "MTP module",
        "the step",
    }
    assert sum(c["count"] for c in shown["collectives"]) + 8 == len(record.calls)
    text = "\n".join(as_lines(record, config.model))
    assert "rank 0 to 2" in text and "all-to-all" in text and "activations" in text


def mixed(process: Process, config: Config) -> str:
    """A run in which a tensor of the host has got among those of the device."""
    from trainer.dry.observer import DryRunError, Observer
    from trainer.dry.routing import BalancedRouting

    device = pretended_gpu()
    with Observer(Record(0, 1, 1), device, BalancedRouting(4, 2, 2)):
        x = torch.zeros(4, 4, device=device)
        try:
            x @ torch.zeros(4, 4)
        except DryRunError as error:
            return str(error)
    return ""


def test_a_tensor_on_the_wrong_device_is_found() -> None:
    said = run_world(1, mixed, config_of())[0]
    assert "mm" in said and "gpu:0" in said and "cpu" in said


def test_memory_is_that_of_the_sizes() -> None:
    """What there is before a step is known exactly; activations grow with the sequences."""
    config = config_of("--precision.parameters", "bfloat16", "--mesh.expert", "1")
    record = dry_run_of(config, 0)
    elements = record.start["weights"] // 2
    assert record.start["gradients"] == 4 * elements
    assert record.start["optimizer"] == 12 * elements  # master and two moments
    longer = replace(config, data=replace(config.data, global_batch=8))
    twice = dry_run_of(longer, 0).peak["activations"] / record.peak["activations"]
    assert 1.8 < twice < 2.2


def test_the_command_refuses_a_rank_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", TINY, "--dry-run", "--rank", "2"]) == 2
    assert "ranks 0 to 1" in capsys.readouterr().err
    assert main(["--config", TINY, "--rank", "0"]) == 2
    assert "--dry-run" in capsys.readouterr().err

"""Texts that the stages write in training are those that the exported weights write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parallel.ranks.process import Process
from tests.distributed import run_world
from trainer.build.layout import Layout, build
from trainer.checkpoint.export import save_checkpoint
from trainer.checkpoint.hf.companions import read_companions
from trainer.config.schema import (
    AttentionConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    MTPConfig,
    PipelineConfig,
    PrecisionConfig,
)
from trainer.data.tokens import ByteTokenizer
from trainer.generate.continue_texts import continue_texts
from trainer.generate.text_model import TextModel, load_text_model
from trainer.model.names import named_tensors
from trainer.objective.pretraining import TOKENS
from trainer.recipe.progress import Progress
from trainer.run.sample import sample_text
from trainer.run.step import Trainer

LENGTH, SEQUENCES, STEPS = 20, 8, 2
BYTES = ByteTokenizer()
MODEL = ModelConfig(
    vocab_size=400,  # some of them are tokens of no text, never to be chosen
    layers=4,
    dense_layers=1,
    dim=16,
    dense_dim=24,
    init_std=0.2,
    attention=AttentionConfig(2, 12, 8, 6, 4, 6),
    moe=MoEConfig(experts=8, shared_experts=1, top_k=3, expert_dim=8, bias_gamma=0.05),
    mtp=MTPConfig(1),
)
LAYOUTS = {
    "1f1b": ("1f1b", (1, 1, 1)),
    "dualpipev, experts over two ranks": ("dualpipev", (1, 2, 1)),
    "dualpipe": ("dualpipe", (2, 1, 1)),
}
PROMPTS = ("", "def f(", "Grüße 你", "longer than all that the model has seen in training")


def config(layout: str) -> Config:
    schedule, mesh = LAYOUTS[layout]
    return Config(
        precision=PrecisionConfig("float64"),
        mesh=MeshConfig(*mesh),
        pipeline=PipelineConfig(schedule, micro_batches=4),
        model=MODEL,
        data=DataConfig(sequence_length=LENGTH, global_batch=SEQUENCES),
        checkpoint=CheckpointConfig(export_dtype="float64"),
    )


def train(layout: Layout, samples: bool = False) -> None:
    """Some steps on random tokens, with or without samples in between."""
    count = layout.config.pipeline.micro_batches
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, 257, (SEQUENCES, LENGTH + 2), generator=generator)
        mine = tokens.chunk(layout.mesh.data)[layout.data_rank].chunk(count)
        Trainer(layout).step(Progress(step), lambda m, mine=mine: {TOKENS: mine[m]})
        if samples:
            sample_text(layout, BYTES, "x", 3)


def written(process: Process, layout_name: str, folder: Path | None) -> dict[str, Any]:
    """What the ranks of a layout write after a few steps, under several conditions."""
    layout = build(config(layout_name), process, torch.device("cpu"))
    train(layout)
    if folder is not None:
        save_checkpoint(layout, folder, read_companions(layout.config))
    texts = [sample_text(layout, BYTES, prompt, 30) for prompt in PROMPTS]
    looks = 0

    def asked() -> bool:
        nonlocal looks
        looks += 1
        return looks > 4 and process.rank == process.world - 1  # on one rank only

    prompt, text = PROMPTS[1], texts[1]
    end = next(char for char in reversed(text) if char.isascii())
    ending = replace(BYTES, end_of_document=ord(end))
    return {
        "texts": texts,
        "short": sample_text(layout, BYTES, prompt, 5),
        "stopped": sample_text(layout, BYTES, prompt, 30, asked),
        "ended": sample_text(layout, ending, prompt, 30),
        "up to the end": text[: text.index(end, len(prompt))],
    }


def greedy(_: Process, folder: Path, asked: list[tuple[str, int]]) -> list[str]:
    """Each prompt and what the exported weights write after it, with a cache, so many tokens."""
    model = load_text_model(folder, None, torch.float64, False, lambda done, total: None)
    return [_greedy(model, prompt, new_tokens) for prompt, new_tokens in asked]


def _greedy(model: TextModel, prompt: str, new_tokens: int) -> str:
    tokens = model.prompt_tokens(prompt)
    tokens = tokens[max(0, len(tokens) - LENGTH + 1) :]
    new_tokens = min(new_tokens, LENGTH - len(tokens))
    [new] = continue_texts(model, [tokens], new_tokens, ends=model.ends)
    text = [token for token in tokens + new if token not in model.ends]
    return BYTES.decode(np.array(text)).decode(errors="replace")


def weights(process: Process, samples: bool) -> dict[str, Any]:
    layout = build(config("1f1b"), process, torch.device("cpu"))
    train(layout, samples)
    return {name: tensor.numpy() for name, tensor in named_tensors(layout.part)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run") / "weights"


@pytest.fixture(scope="module")
def on_one_rank(folder: Path) -> dict[str, Any]:
    """What one rank writes; its weights are exported to `folder`."""
    [said] = run_world(1, written, "1f1b", folder)
    return said


def test_samples_are_the_greedy_texts_of_the_exported_weights(
    folder: Path, on_one_rank: dict[str, Any]
) -> None:
    said = on_one_rank
    asked = [(prompt, 30) for prompt in PROMPTS] + [(PROMPTS[1], 5), (PROMPTS[1], 4)]
    [[*texts, short, stopped]] = run_world(1, greedy, folder, asked)
    assert len(set(texts[1])) > 8, "a text of one token shows nothing"
    assert (said["texts"], said["short"], said["stopped"]) == (texts, short, stopped)
    assert said["ended"] == said["up to the end"] != said["texts"][1]


@pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
def test_every_layout_writes_the_same_on_all_ranks(
    on_one_rank: dict[str, Any], layout: str
) -> None:
    assert run_world(2, written, layout, None) == [on_one_rank] * 2


def test_samples_leave_the_training_as_it_is() -> None:
    with_samples, without = (run_world(1, weights, samples)[0] for samples in (True, False))
    for name, tensor in without.items():
        np.testing.assert_array_equal(with_samples[name], tensor, err_msg=name)


def test_a_sequence_of_one_token_has_no_room() -> None:
    assert run_world(1, one_token) == [["", ""]]


def one_token(process: Process) -> list[str]:
    short = config("1f1b")
    short.data.sequence_length = 1
    layout = build(short, process, torch.device("cpu"))
    return [sample_text(layout, BYTES, prompt, 3) for prompt in ("", "ab")]

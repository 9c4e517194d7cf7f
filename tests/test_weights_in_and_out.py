"""Weights leave a run as a checkpoint that transformers reads, and come back under any layout."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM

from parallel.expert.dispatch import LocalDispatcher
from parallel.expert.wire import PlainWire
from parallel.ops.ops import Ops
from parallel.ranks.process import Process
from tests.commands import ROOT, finish, start
from tests.distributed import run_world
from trainer.build.layout import build
from trainer.checkpoint.export import save_checkpoint
from trainer.checkpoint.hf.architecture import model_from_hf
from trainer.checkpoint.hf.companions import read_companions
from trainer.checkpoint.hf.encode import encode
from trainer.checkpoint.hf.load import load_part
from trainer.checkpoint.hf.reader import Checkpoint
from trainer.config.schema import (
    AttentionConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    MTPConfig,
    OptimizerConfig,
    PipelineConfig,
    PrecisionConfig,
    RunConfig,
    StorageType,
    YarnConfig,
)
from trainer.config.validate import validate
from trainer.errors import CheckpointError
from trainer.model.moe import ExpertsHere
from trainer.model.names import named_biases, named_tensors, released_shapes
from trainer.model.options import LayerOptions
from trainer.model.part import ModelPart
from trainer.model.partition import moe_layers, partition_layers
from trainer.objective.pretraining import TOKENS
from trainer.recipe.progress import Progress
from trainer.run.step import Trainer

STEPS, SEQUENCES, LENGTH = 3, 8, 12
MODEL = ModelConfig(
    vocab_size=257,
    layers=4,
    dense_layers=1,
    dim=16,
    dense_dim=24,
    init_std=0.2,
    attention=AttentionConfig(
        2, 12, 8, 6, 4, 6, yarn=YarnConfig(4.0, 8, mscale=0.7, mscale_all_dim=1.0)
    ),
    moe=MoEConfig(
        experts=8, shared_experts=1, top_k=3, groups=4, top_groups=2, expert_dim=8, scale=1.7,
        bias_gamma=0.05, balance_alpha=0.01,
    ),
    mtp=MTPConfig(1, 0.3),
)  # fmt: skip
TRAINED = ("dualpipe", (2, 2, 1))
OTHERS = [("1f1b", (1, 1, 1)), ("dualpipev", (2, 1, 2)), ("zb-h1", (2, 2, 1))]
WINDOWS = torch.randint(0, 257, (6, LENGTH + 2), generator=torch.Generator().manual_seed(7))


def _config(layout: tuple[str, tuple[int, int, int]], dtype: str, model: ModelConfig) -> Config:
    schedule, (pipeline, expert, expert_data) = layout
    return Config(
        run=RunConfig(steps=STEPS, seed=1),
        precision=PrecisionConfig(dtype),
        mesh=MeshConfig(pipeline, expert, expert_data),
        pipeline=PipelineConfig(schedule, micro_batches=4),
        model=model,
        data=DataConfig(sequence_length=LENGTH, global_batch=SEQUENCES),
        optimizer=OptimizerConfig(lr=1e-2, warmup_steps=0, clip=0.5),
        checkpoint=CheckpointConfig(export_dtype=dtype),
    )


def _batch(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 257, (SEQUENCES, LENGTH + 2), generator=generator)


def _train_and_look(
    process: Process, config: Config, steps: int, folder: Path | None
) -> dict[str, Any]:
    """Train, save if there is a folder, and look at the weights: their validation loss, the router
    biases, and the gradients of the next batch."""
    validate(config, process.world)
    layout = build(config, process, torch.device("cpu"))
    trainer = Trainer(layout)
    first = layout.mesh.data_rank(process.rank) * config.pipeline.micro_batches
    for step in range(steps):
        parts = _batch(step).split(layout.sequences)
        trainer.step(Progress(step), lambda m, p=parts: {TOKENS: p[first + m]})
    if folder is not None:
        save_checkpoint(layout, folder, read_companions(config))
    parts = _batch(STEPS).split(layout.sequences)
    trainer.accumulate(Progress(STEPS), lambda m: {TOKENS: parts[first + m]})
    gradients = named_tensors(layout.part, lambda p: p.grad)
    return {
        "validation": trainer.evaluate({TOKENS: WINDOWS})["loss"],
        "gradients": {name: gradient.numpy().copy() for name, gradient in gradients},
        "biases": {name: bias.numpy().copy() for name, bias in named_biases(layout.part)},
    }


def _transformers_loss(folder: Path, windows: Tensor) -> float:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits_BSV = model(windows[:, :LENGTH]).logits
    targets = windows[:, 1 : LENGTH + 1]
    return float(torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), targets.flatten()))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float64", 1e-10), pytest.param("float32", 1e-5, marks=pytest.mark.slow)],
)
def test_trained_weights_are_the_same_in_transformers_and_under_other_layouts(
    tmp_path: Path, dtype: str, tolerance: float
) -> None:
    folder = tmp_path / "weights"
    config = _config(TRAINED, dtype, MODEL)
    trained = run_world(4, _train_and_look, config, STEPS, folder)
    expected = trained[0]["validation"]
    if dtype == "float32":
        assert _transformers_loss(folder, WINDOWS) == pytest.approx(expected, rel=1e-5)
    gradients = {name: g for result in trained for name, g in result["gradients"].items()}
    biases = {name: b for result in trained for name, b in result["biases"].items()}
    assert all(np.abs(bias).max() >= 0.05 for bias in biases.values())

    for layout in OTHERS:
        other = _config(layout, dtype, replace(MODEL, init_from=str(folder)))
        for result in run_world(int(np.prod(layout[1])), _train_and_look, other, 0, None):
            assert result["validation"] == pytest.approx(expected, rel=tolerance)
            for name, bias in result["biases"].items():
                np.testing.assert_array_equal(bias, biases[name], name)
            for name, gradient in result["gradients"].items():
                np.testing.assert_allclose(
                    gradient, gradients[name], rtol=0, err_msg=f"{layout} {name}",
                    atol=tolerance * np.abs(gradients[name]).max() + 1e-12,
                )  # fmt: skip


def test_a_saved_folder_has_the_released_layout(tmp_path: Path) -> None:
    """Names, shapes and types, from several ranks, in fp8: what others' loaders go by."""
    config = _config(TRAINED, "float32", MODEL)
    config.checkpoint.export_dtype = "fp8"
    run_world(4, _train_and_look, config, 1, tmp_path / "fp8")
    checkpoint = Checkpoint(tmp_path / "fp8")
    checkpoint.require(released_shapes(MODEL))
    checkpoint.require_nothing_else(released_shapes(MODEL))
    types = {name: checkpoint.dtype(name) for name in released_shapes(MODEL)}
    routed = "model.layers.4.mlp.experts.7.down_proj.weight"
    assert types[routed] == types["model.layers.0.mlp.up_proj.weight"] == torch.float8_e4m3fn
    assert types["model.layers.1.self_attn.kv_b_proj.weight"] == torch.float8_e4m3fn
    assert types["model.layers.4.eh_proj.weight"] == types["lm_head.weight"] == torch.bfloat16
    assert types["model.layers.4.embed_tokens.weight"] == torch.bfloat16
    assert types["model.layers.1.mlp.gate.weight"] == torch.bfloat16
    assert types["model.layers.1.mlp.gate.e_score_correction_bias"] == torch.float32
    files = {checkpoint.files[name] for name in released_shapes(MODEL)}
    # DualPipe's mirror holds copies, so of four ranks two write, one for each half of the experts.
    assert sorted(files) == [f"model-{n:05d}-of-00002.safetensors" for n in (1, 2)]
    index = json.loads((tmp_path / "fp8/model.safetensors.index.json").read_text())
    sizes = sum(checkpoint.nbytes(name) for name in released_shapes(MODEL))
    assert index["metadata"]["total_size"] == sizes
    for file in files:
        with safe_open(tmp_path / "fp8" / file, "pt") as shard:
            assert {index["weight_map"][name] for name in shard.keys()} == {file}  # noqa: SIM118


def _transformers_checkpoint(folder: Path) -> DeepseekV3ForCausalLM:
    torch.manual_seed(0)
    model = DeepseekV3ForCausalLM(
        DeepseekV3Config(
            vocab_size=260, hidden_size=16, intermediate_size=24, moe_intermediate_size=8,
            num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2, n_routed_experts=8,
            kv_lora_rank=8, q_lora_rank=12, qk_rope_head_dim=4, qk_nope_head_dim=6, v_head_dim=6,
            n_group=4, topk_group=2, num_experts_per_tok=3, first_k_dense_replace=1,
            max_position_embeddings=64, initializer_range=0.2, bos_token_id=257, eos_token_id=258,
        )
    )  # fmt: skip
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.uniform_(-0.2, 0.2)
    model.save_pretrained(folder, max_shard_size="20KB")
    return model


def test_a_run_starts_from_a_checkpoint_of_transformers(tmp_path: Path) -> None:
    source = tmp_path / "source"
    _transformers_checkpoint(source)
    (source / "chat_template.jinja").write_text("{{ messages }}")
    hf = json.loads((source / "config.json").read_text())
    model = replace(model_from_hf(hf, "config.json"), mtp=MTPConfig(0), init_from=str(source))
    config = _config(("dualpipe", (2, 2, 1)), "float32", replace(model, layers=3))
    config.pipeline.layers_per_stage = [2, 1]
    for result in run_world(4, _train_and_look, config, 0, None):
        expected = _transformers_loss(source, WINDOWS)
        assert result["validation"] == pytest.approx(expected, rel=1e-5)

    printed = finish(start(tmp_path, str(source), "--print-config", script="launch/convert.py"))
    assert printed[0] == 0, printed[2]
    settings = yaml.safe_load(printed[1])
    settings |= {
        "run": {"name": "on", "steps": 2},
        "mesh": {"expert": 2},
        "data": {"sequence_length": 16, "global_batch": 4},
        "pipeline": {"micro_batches": 2},
        "metrics": {"eval_sequences": 4},
    }
    (tmp_path / "on.yaml").write_text(yaml.safe_dump(settings))
    ended = finish(start(tmp_path, "--config", "on.yaml", processes=2))
    assert ended[0] == 0, ended[2]
    weights = tmp_path / "runs/on/weights"
    theirs = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
    assert theirs.config.eos_token_id == 258 and theirs.config.max_position_embeddings == 64
    assert theirs.generation_config.bos_token_id == 257
    assert (weights / "chat_template.jinja").read_text() == "{{ messages }}"
    assert str(ROOT) not in (weights / "config.json").read_text()


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    """Each in one line that says what is wrong and where; no rank hangs."""
    source = tmp_path / "source"
    _transformers_checkpoint(source)
    (tmp_path / "m.yaml").write_text(
        finish(start(tmp_path, str(source), "--print-config", script="launch/convert.py"))[1]
    )
    (tmp_path / "text.txt").write_text("the cat sat on the mat, then on the hat\n" * 500)
    base = ("--config", "m.yaml", "--run.steps", "1", "--mesh.expert", "2")
    base += ("--data.path", "text.txt")

    def refused(*arguments: str) -> str:
        code, _, err = finish(start(tmp_path, *base, *arguments, processes=2))
        assert code != 0
        lines = [line for line in err.splitlines() if line.startswith("train: ")]
        assert lines and not any("Traceback" in line for line in err.splitlines()), err
        return lines[0]

    said = refused("--model.dim", "32")
    assert "model.dim is 32" in said and "has 16" in said and "--print-config" in said, said
    said = refused("--model.mtp.depth", "1")
    assert "no MTP module" in said and "model.mtp.depth" in said, said
    said = refused("--model.init_from", "nowhere")
    assert "nowhere/config.json" in said, said
    shard = sorted(source.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    assert shard.name in refused()
    shard.unlink()
    assert shard.name in refused()


def test_another_embedding_in_mtp_is_refused(tmp_path: Path) -> None:
    """Tandem's MTP shares the embedding: a checkpoint whose copy differs is another function."""
    folder = tmp_path / "weights"
    run_world(1, _train_and_look, _config(OTHERS[0], "float32", MODEL), 0, folder)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.layers.4.embed_tokens.weight"][3, 3] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    other = _config(OTHERS[0], "float32", replace(MODEL, init_from=str(folder)))
    with pytest.raises(CheckpointError, match=r"layers.4.embed_tokens.weight is not model.embed"):
        build(other, Process(), torch.device("cpu"))


class _Recording(Checkpoint):
    """A checkpoint that remembers what was read of it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.read_names: list[str] = []

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        self.read_names.append(name)
        return super().read(name, dtype)


def test_a_rank_reads_only_the_tensors_it_holds(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    run_world(1, _train_and_look, _config(OTHERS[0], "float32", MODEL), 0, folder)
    config = _config(("1f1b", (2, 2, 1)), "float32", MODEL)
    partition = partition_layers(MODEL.layers, 2, MODEL.mtp.depth)
    options = LayerOptions(MODEL, config.recompute, Ops(), 1)
    second_half = ExpertsHere((4, 5, 6, 7), LocalDispatcher(4, PlainWire()))
    last = ModelPart(options, partition, [1], dict.fromkeys(moe_layers(MODEL), second_half))
    checkpoint, told = _Recording(folder), []
    load_part(last, MODEL, checkpoint, True, lambda done, total: told.append((done, total)))
    held = {
        name
        for name in released_shapes(MODEL)
        if not re.search(r"layers\.[01]\.|experts\.[0-3]\.", name)
    }
    assert sorted(checkpoint.read_names) == sorted(held)
    assert told[-1] == (told[0][1],) * 2 == (sum(map(checkpoint.nbytes, held)),) * 2


def _save_in_vain(process: Process, config: Config, folder: Path, fault: str) -> str:
    """Rank 1 cannot write more than a few bytes, or has a weight that is no number, or all have no
    room; what each rank says of it."""
    layout = build(config, process, torch.device("cpu"))
    save_checkpoint(layout, folder, read_companions(config))
    if fault == "no room":
        shutil.disk_usage = lambda _: SimpleNamespace(free=12_300)
    elif process.rank == 1 and fault == "full":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    elif process.rank == 1:
        tensors = [*layout.part.parameters()] if fault != "bias" else [*layout.part.buffers()]
        with torch.no_grad():
            tensors[-1].flatten()[-1] = float("-inf" if fault == "weight" else "nan")
    try:
        save_checkpoint(layout, folder, read_companions(config))
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("fault", "storage", "words"),
    [
        ("full", "float32", "File too large"),
        ("no room", "float32", "12.3 kB left"),
        ("weight", "float32", "head.weight: has a value that is not finite as float32"),
        ("weight", "fp8", "head.weight: has a value that is not finite as fp8"),
        ("bias", "bfloat16", "e_score_correction_bias: has a value that is not finite as bfloat16"),
    ],
)
def test_a_save_that_fails_on_one_rank_leaves_the_weights_before_it(
    tmp_path: Path, fault: str, storage: StorageType, words: str
) -> None:
    folder = tmp_path / "weights"
    config = _config(("1f1b", (2, 1, 1)), "float32", MODEL)
    config.checkpoint.export_dtype = storage
    for rank, said in enumerate(run_world(2, _save_in_vain, config, folder, fault)):
        assert f"cannot save the weights to {folder}: " in said and words in said, said
        assert "rank 1: " in said or rank == 1 or fault == "no room", said
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    Checkpoint(folder).require(released_shapes(MODEL))


@pytest.mark.parametrize("storage", get_args(StorageType))
def test_values_that_a_type_does_not_hold_are_refused(storage: StorageType) -> None:
    """1e39 is a float64 and no float32; a router bias keeps float64 only where all does."""
    large = torch.tensor([[1.0, -1e39]], dtype=torch.float64)
    for name in ("model.layers.1.mlp.gate.e_score_correction_bias", "x.mlp.up_proj.weight"):
        if storage == "float64":
            assert encode(name, large, storage)[name].equal(large)
            continue
        with pytest.raises(CheckpointError, match=f"^{name}: .* not finite"):
            encode(name, large, storage)

"""Checkpoints with the names, types, order and index of the released DeepSeek-V3, at any width.

Written without the code that reads and writes checkpoints, so that it can be tested against them:
names from README_WEIGHTS.md of deepseek-ai/DeepSeek-V3 and transformers' DeepseekV3ForCausalLM,
types and shapes as in the released files, whose shards are called model-00001-of-000163.safetensors
and end wherever they are full, now and then between a weight and its scale
(github.com/deepseek-ai/DeepSeek-V3/pull/2). Values are random.

    python tests/synthetic_checkpoint.py FOLDER --gigabytes 2 --shard-gigabytes 0.5 --dtype fp8
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

FP8, BF16, F32 = torch.float8_e4m3fn, torch.bfloat16, torch.float32
TOY: dict[str, Any] = {  # keys in the order of the released file, which is sorted
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 192,
    "initializer_range": 0.02,
    "intermediate_size": 320,
    "kv_lora_rank": 64,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 64,
    "moe_layer_freq": 1,
    "n_group": 4,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 5,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 96,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    "v_head_dim": 32,
    "vocab_size": 512,
}
TOY_SHARD = 235_000  # bytes; one file ends between a weight and its scale
WIDE = TOY | {"hidden_size": 2048, "intermediate_size": 8192, "moe_intermediate_size": 1024}
WIDE |= {"q_lora_rank": 768, "kv_lora_rank": 512, "num_attention_heads": 16, "vocab_size": 32000}
WIDE |= {"num_key_value_heads": 16, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
WIDE |= {"v_head_dim": 128, "n_group": 8}


def tensors_of(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
    """(name, shape, type in an fp8 checkpoint) of every tensor but the scales, by depth."""
    dim, vocab, layers = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    yield "model.embed_tokens.weight", (vocab, dim), BF16
    for layer in range(layers):
        yield from _layer(config, layer)
    yield "model.norm.weight", (dim,), BF16
    yield "lm_head.weight", (vocab, dim), BF16
    for layer in range(layers, layers + config["num_nextn_predict_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.embed_tokens.weight", (vocab, dim), BF16
        yield f"{prefix}.enorm.weight", (dim,), BF16
        yield f"{prefix}.hnorm.weight", (dim,), BF16
        yield f"{prefix}.eh_proj.weight", (dim, 2 * dim), BF16
        yield from _layer(config, layer)
        yield f"{prefix}.shared_head.norm.weight", (dim,), BF16
        yield f"{prefix}.shared_head.head.weight", (vocab, dim), BF16


def _layer(
    config: dict[str, Any], layer: int
) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
    dim, heads = config["hidden_size"], config["num_attention_heads"]
    nope, rope, v = (config[f"{k}_head_dim"] for k in ("qk_nope", "qk_rope", "v"))
    q_rank, kv_rank = config["q_lora_rank"], config["kv_lora_rank"]
    prefix = f"model.layers.{layer}"
    yield f"{prefix}.self_attn.q_a_proj.weight", (q_rank, dim), FP8
    yield f"{prefix}.self_attn.q_a_layernorm.weight", (q_rank,), BF16
    yield f"{prefix}.self_attn.q_b_proj.weight", (heads * (nope + rope), q_rank), FP8
    yield f"{prefix}.self_attn.kv_a_proj_with_mqa.weight", (kv_rank + rope, dim), FP8
    yield f"{prefix}.self_attn.kv_a_layernorm.weight", (kv_rank,), BF16
    yield f"{prefix}.self_attn.kv_b_proj.weight", (heads * (nope + v), kv_rank), FP8
    yield f"{prefix}.self_attn.o_proj.weight", (dim, heads * v), FP8
    if layer < config["first_k_dense_replace"]:
        yield from _mlp(f"{prefix}.mlp", dim, config["intermediate_size"])
    else:
        experts, inner = config["n_routed_experts"], config["moe_intermediate_size"]
        yield f"{prefix}.mlp.gate.weight", (experts, dim), BF16
        yield f"{prefix}.mlp.gate.e_score_correction_bias", (experts,), F32
        shared = config["n_shared_experts"] * inner
        yield from _mlp(f"{prefix}.mlp.shared_experts", dim, shared)
        for expert in range(experts):
            yield from _mlp(f"{prefix}.mlp.experts.{expert}", dim, inner)
    yield f"{prefix}.input_layernorm.weight", (dim,), BF16
    yield f"{prefix}.post_attention_layernorm.weight", (dim,), BF16


def _mlp(prefix: str, dim: int, inner: int) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
    yield f"{prefix}.gate_proj.weight", (inner, dim), FP8
    yield f"{prefix}.up_proj.weight", (inner, dim), FP8
    yield f"{prefix}.down_proj.weight", (dim, inner), FP8


def make_checkpoint(
    folder: Path, config: dict[str, Any], shard_bytes: int, fp8: bool = True
) -> None:
    """Write config.json, shards of at most `shard_bytes`, their index, and files of a tokenizer."""
    config = dict(config)
    if not fp8:
        config.pop("quantization_config")
    entries = list(_stored(config, fp8))
    shards: list[list[tuple[str, tuple[int, ...], torch.dtype]]] = [[]]
    for entry in entries:
        if sum(map(_nbytes, [*shards[-1], entry])) > shard_bytes and shards[-1]:
            shards.append([])
        shards[-1].append(entry)
    folder.mkdir(parents=True)
    weight_map = {}
    generator = torch.Generator().manual_seed(1)
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):06d}.safetensors"
        values = {name: _values(name, shape, dtype, generator) for name, shape, dtype in shard}
        save_file(values, folder / file, metadata={"format": "pt"})
        weight_map |= {name: file for name, _, _ in shard}
    index = {"metadata": {"total_size": sum(map(_nbytes, entries))}, "weight_map": weight_map}
    for name, value in {
        "config.json": config,
        "model.safetensors.index.json": index,
        "generation_config.json": {"eos_token_id": 1},
        "tokenizer_config.json": {"model_max_length": 16384},
    }.items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    (folder / "LICENSE-MODEL").write_text("none, random numbers\n")
    (folder / "modeling_deepseek.py").write_text("raise SystemExit\n")


def _stored(
    config: dict[str, Any], fp8: bool
) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
    for name, shape, dtype in tensors_of(config):
        yield name, shape, dtype if fp8 or dtype != FP8 else BF16
        if fp8 and dtype == FP8:
            blocks = tuple(math.ceil(size / 128) for size in shape)
            yield f"{name}_scale_inv", blocks, F32


def _nbytes(entry: tuple[str, tuple[int, ...], torch.dtype]) -> int:
    return math.prod(entry[1]) * entry[2].itemsize


def _values(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    if name.endswith("_scale_inv"):  # any float32, not only what some quantiser would compute
        return torch.rand(shape, generator=generator).mul_(1e-4).add_(1e-5)
    if dtype == FP8:  # every code but the two that are nan
        codes = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return codes.masked_fill_((codes & 127) == 127, 126).view(FP8)
    return torch.empty(shape, dtype=dtype).normal_(0, 0.02, generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(prog="synthetic_checkpoint", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="about so large (2)")
    parser.add_argument("--shard-gigabytes", type=float, default=0.5, help="of a file (0.5)")
    parser.add_argument("--dtype", choices=("fp8", "bfloat16"), default="fp8")
    options = parser.parse_args()
    fp8, config = options.dtype == "fp8", dict(WIDE)
    while sum(map(_nbytes, _stored(config, fp8))) < options.gigabytes * 1e9:
        config["n_routed_experts"] += config["n_group"]
    make_checkpoint(options.folder, config, int(options.shard_gigabytes * 1e9), fp8)


if __name__ == "__main__":
    main()

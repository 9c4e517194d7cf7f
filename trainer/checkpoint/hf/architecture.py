"""The architecture of a model, as our dataclasses, from Hugging Face's config.json.

Keys are those of the released DeepSeek-V3 and DeepSeek-V2 checkpoints, and of what transformers 5
writes (rope_parameters in place of rope_theta and rope_scaling). No torch in here, so that a config
that does not fit its checkpoint is reported at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from parallel.files.shown import shown
from trainer.checkpoint.hf.config_types import (
    OPTIONAL,
    REQUIRED,
    YARN_OPTIONAL,
    YARN_REQUIRED,
    require_types,
)
from trainer.config.schema import AttentionConfig, ModelConfig, MoEConfig, MTPConfig, YarnConfig
from trainer.errors import ConfigError
from trainer.io.json_object import read_json_object
from trainer.model.partition import released_layer

CONFIG_FILE = "config.json"
FP8_BLOCKS = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
_FP8_KEYS = ("fmt", "quant_method", "weight_block_size")
# Keys of config.json that must have one of these values: nothing else is implemented.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "model_type": ("deepseek_v3", "deepseek_v2"),
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "tie_word_embeddings": (False, None),
    "rope_interleave": (True, None),
    "moe_layer_freq": (1, None),
}
# The same, by model_type. Readers disagree on what norm_topk_prob means in V2.
_REQUIRED_OF: dict[str, dict[str, tuple[Any, ...]]] = {
    "deepseek_v3": {"topk_method": ("noaux_tc", None), "scoring_func": ("sigmoid", None)},
    "deepseek_v2": {
        "topk_method": ("greedy", "group_limited_greedy", None),
        "scoring_func": ("softmax", None),
        "norm_topk_prob": (False, None),
    },
}


def read_hf_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder. Raises ConfigError where it cannot be read."""
    return read_json_object(folder / CONFIG_FILE, ConfigError)


def model_from_hf(config: dict[str, Any], where: str) -> ModelConfig:
    """The model that a config.json describes; `where` names the file in errors.

    What matters only in training (loss weights, gamma of the router bias) gets our defaults, except
    that a V2 model has no router bias to move. Raises ConfigError for a key that is missing and for
    what is not implemented.
    """
    of_type = _REQUIRED_OF.get(str(config.get("model_type")), {})
    for key, allowed in (_REQUIRED | of_type).items():
        if config.get(key) not in allowed:
            supported = " or ".join(map(repr, allowed))
            raise ConfigError(
                f"{where}: {key} is {shown(config.get(key))}, only {supported} is supported"
            )
    require_types(config, where, REQUIRED, OPTIONAL)
    if "q_lora_rank" not in config:  # null is none, but to transformers a missing key means 1536
        raise ConfigError(f"{where}: q_lora_rank is missing")
    quantised = config.get("quantization_config")
    if quantised and (
        not isinstance(quantised, dict)
        or any(quantised.get(key) != FP8_BLOCKS[key] for key in _FP8_KEYS)
    ):
        raise ConfigError(
            f"{where}: quantization_config {shown(quantised)} is not supported: only fp8 in "
            "blocks of 128 x 128"
        )
    return _model(config, where)


def _model(c: dict[str, Any], where: str) -> ModelConfig:
    v3 = c["model_type"] == "deepseek_v3"
    heads = c["num_attention_heads"]
    if c.get("num_key_value_heads") not in (heads, None):
        raise ConfigError(f"{where}: num_key_value_heads must be num_attention_heads, {heads}")
    grouped = v3 or c.get("topk_method") == "group_limited_greedy"
    moe = MoEConfig(
        experts=c["n_routed_experts"],
        shared_experts=c.get("n_shared_experts") or 0,
        top_k=c["num_experts_per_tok"],
        groups=(c.get("n_group") or 1) if grouped else 1,
        top_groups=(c.get("topk_group") or 1) if grouped else 1,
        expert_dim=c["moe_intermediate_size"],
        score="sigmoid" if v3 else "softmax",
        normalise=v3 and bool(c.get("norm_topk_prob", True)),
        scale=float(c["routed_scaling_factor"]),
        bias_gamma=MoEConfig.bias_gamma if v3 else 0.0,
    )
    theta, yarn = _rope(c, where)
    attention = AttentionConfig(
        heads=heads,
        q_lora_rank=c["q_lora_rank"],
        kv_lora_rank=c["kv_lora_rank"],
        nope_head_dim=c["qk_nope_head_dim"],
        rope_head_dim=c["qk_rope_head_dim"],
        v_head_dim=c["v_head_dim"],
        rope_theta=theta,
        yarn=yarn,
    )
    return ModelConfig(
        vocab_size=c["vocab_size"],
        layers=c["num_hidden_layers"],
        dense_layers=c["first_k_dense_replace"],
        dim=c["hidden_size"],
        dense_dim=c["intermediate_size"],
        norm_eps=float(c["rms_norm_eps"]),
        init_std=float(c.get("initializer_range") or ModelConfig.init_std),
        attention=attention,
        moe=moe,
        mtp=MTPConfig(depth=c.get("num_nextn_predict_layers", c.get("num_mtp_layers")) or 0),
    )


def _rope(c: dict[str, Any], where: str) -> tuple[float, YarnConfig]:
    """Base of the rotary frequencies, and YaRN: absent keys mean what they mean to transformers."""
    key = "rope_scaling" if c.get("rope_scaling") else "rope_parameters"
    scaling = c.get(key) or {}
    require_types(scaling, f"{where}: {key}", {}, YARN_OPTIONAL)
    theta = scaling.get("rope_theta") or c.get("rope_theta") or AttentionConfig.rope_theta
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return float(theta), YarnConfig()
    unknown = {k for k in ("attention_factor", "partial_rotary_factor") if scaling.get(k)}
    if kind != "yarn" or unknown or not scaling.get("truncate", True):
        raise ConfigError(
            f"{where}: {key} {shown(scaling)} is not supported: only type yarn, "
            "without attention_factor and truncate"
        )
    require_types(scaling, f"{where}: {key}", YARN_REQUIRED, YARN_OPTIONAL)
    original, factor = scaling["original_max_position_embeddings"], scaling.get("factor")
    if not factor:
        require_types(c, where, {"max_position_embeddings": (int, 1)}, {})
    return float(theta), YarnConfig(
        factor=float(factor or c["max_position_embeddings"] / original),
        original_length=original,
        beta_fast=float(scaling.get("beta_fast") or 32),
        beta_slow=float(scaling.get("beta_slow") or 1),
        mscale=float(scaling.get("mscale") or 0),
        mscale_all_dim=float(scaling.get("mscale_all_dim") or 0),
    )


def with_mtp_of(model: ModelConfig, names: Iterable[str]) -> ModelConfig:
    """`model` with as many MTP modules as a checkpoint with these tensors has: transformers says in
    config.json that there is one, and does not save it."""
    names = set(names)
    depth = 0
    while f"{released_layer(model.layers + depth)}eh_proj.weight" in names:
        depth += 1
    return dataclasses.replace(model, mtp=dataclasses.replace(model.mtp, depth=depth))


def differences(ours: ModelConfig, theirs: ModelConfig) -> list[tuple[str, Any, Any]]:
    """(key, ours, theirs) where two models are not the same function; how they are trained, and
    how many MTP modules there are, is left out."""
    training = {"init_std", "init_from", "mtp", "moe.bias_gamma", "moe.balance_alpha"}
    if ours.attention.yarn.factor == theirs.attention.yarn.factor == 1:
        training |= {f"attention.yarn.{f.name}" for f in dataclasses.fields(YarnConfig)}
    return list(_differences("", ours, theirs, training))


def _differences(prefix: str, ours: Any, theirs: Any, skip: set[str]) -> Iterable[Any]:
    for field in dataclasses.fields(ours):
        key = f"{prefix}{field.name}"
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        if key in skip or mine == other:
            continue
        if dataclasses.is_dataclass(mine):
            yield from _differences(f"{key}.", mine, other, skip)
        else:
            yield f"model.{key}", mine, other

"""The config.json of a model: what others read its architecture from.

As the released DeepSeek-V3 and DeepSeek-V2 checkpoints have it, which transformers, vLLM and SGLang
all read. No torch in here, so that a model that no config.json can describe is reported at once.
"""

from __future__ import annotations

from typing import Any

from trainer.checkpoint.hf.architecture import FP8_BLOCKS
from trainer.config.schema import ModelConfig, StorageType, YarnConfig

# What a base says in another form, about its own files, or about who wrote it.
_NOT_KEPT = (
    "rope_parameters",
    "dtype",
    "num_mtp_layers",
    "quantization_config",
    "auto_map",
    "transformers_version",
)


def not_representable(model: ModelConfig) -> str | None:
    """Why no config.json can describe this model, or None."""
    moe = model.moe
    if moe.score == "softmax" and moe.normalise:
        return "model.moe.normalise must be false with model.moe.score softmax, as in DeepSeek-V2"
    if moe.score == "softmax" and moe.bias_gamma:
        return "model.moe.bias_gamma must be 0 with model.moe.score softmax: V2 has no router bias"
    if moe.score == "sigmoid" and moe.groups > 1 and moe.experts // moe.groups < 2:
        return "model.moe.groups must leave at least 2 experts per group, as in DeepSeek-V3"
    return None


def hf_from_model(
    model: ModelConfig, base: dict[str, Any], dtype: StorageType, sequence_length: int
) -> dict[str, Any]:
    """config.json of `model` stored as `dtype`.

    base: config.json of the checkpoint that the model was made from, if any; what it says beyond
    the architecture (special tokens, longest position) is kept. sequence_length: what it was
    trained on, the longest position where neither base nor YaRN reaches further.
    """
    v3, moe, attention = model.moe.score == "sigmoid", model.moe, model.attention
    kept = {key: value for key, value in base.items() if key not in _NOT_KEPT}
    stretched = round(attention.yarn.original_length * attention.yarn.factor)
    longest = stretched if attention.yarn.factor > 1 else sequence_length
    config = kept | {
        "architectures": [f"DeepseekV{3 if v3 else 2}ForCausalLM"],
        "model_type": f"deepseek_v{3 if v3 else 2}",
        "vocab_size": model.vocab_size,
        "hidden_size": model.dim,
        "intermediate_size": model.dense_dim,
        "num_hidden_layers": model.layers,
        "num_nextn_predict_layers": model.mtp.depth,
        "first_k_dense_replace": model.dense_layers,
        "moe_layer_freq": 1,
        "n_routed_experts": moe.experts,
        "n_shared_experts": moe.shared_experts,
        "num_experts_per_tok": moe.top_k,
        "n_group": moe.groups,
        "topk_group": moe.top_groups,
        "moe_intermediate_size": moe.expert_dim,
        "scoring_func": moe.score,
        "topk_method": _topk_method(model),
        "norm_topk_prob": moe.normalise,
        "routed_scaling_factor": moe.scale,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.heads,
        "q_lora_rank": attention.q_lora_rank,
        "kv_lora_rank": attention.kv_lora_rank,
        "qk_nope_head_dim": attention.nope_head_dim,
        "qk_rope_head_dim": attention.rope_head_dim,
        "v_head_dim": attention.v_head_dim,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rope_theta": attention.rope_theta,
        "rope_scaling": _rope_scaling(attention.yarn),
        "max_position_embeddings": max(kept.get("max_position_embeddings") or 0, longest),
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "initializer_range": model.init_std,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16" if dtype == "fp8" else dtype,
    }
    return config | ({"quantization_config": FP8_BLOCKS} if dtype == "fp8" else {})


def _topk_method(model: ModelConfig) -> str:
    if model.moe.score == "sigmoid":
        return "noaux_tc"
    return "greedy" if model.moe.groups == 1 else "group_limited_greedy"


def _rope_scaling(yarn: YarnConfig) -> dict[str, Any] | None:
    if yarn.factor == 1:
        return None
    return {
        "type": "yarn",
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.original_length,
        "beta_fast": yarn.beta_fast,
        "beta_slow": yarn.beta_slow,
        "mscale": yarn.mscale,
        "mscale_all_dim": yarn.mscale_all_dim,
    }

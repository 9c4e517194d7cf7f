"""config.json in and out: the released ones, transformers' own, ours, and what is refused."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, DeepseekV3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deepseek_v3.modeling_deepseek_v3 import yarn_apply_mscale

from trainer.checkpoint.hf.architecture import differences, model_from_hf
from trainer.checkpoint.hf.config_json import hf_from_model, not_representable
from trainer.config.schema import AttentionConfig, ModelConfig, MoEConfig, MTPConfig, YarnConfig
from trainer.errors import ConfigError
from trainer.model.rope import rotations, softmax_scale
from trainer.model.size import parameter_counts

YARN = {
    "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
    "beta_slow": 1,
}  # fmt: skip
# What huggingface.co/deepseek-ai/DeepSeek-V3 and DeepSeek-V2-Lite say of the architecture in their
# config.json.
COMMON = {
    "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu",
    "initializer_range": 0.02, "kv_lora_rank": 512, "max_position_embeddings": 163840,
    "moe_layer_freq": 1, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
    "rope_theta": 10000, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "v_head_dim": 128,
}  # fmt: skip
V3 = COMMON | {
    "architectures": ["DeepseekV3ForCausalLM"], "first_k_dense_replace": 3, "hidden_size": 7168,
    "intermediate_size": 18432, "model_type": "deepseek_v3", "moe_intermediate_size": 2048,
    "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True,
    "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
    "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "q_lora_rank": 1536,
    "quantization_config": {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}, "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid", "topk_group": 4, "topk_method": "noaux_tc", "vocab_size": 129280,
}  # fmt: skip
V2_LITE = COMMON | {
    "architectures": ["DeepseekV2ForCausalLM"], "first_k_dense_replace": 1, "hidden_size": 2048,
    "intermediate_size": 10944, "model_type": "deepseek_v2", "moe_intermediate_size": 1408,
    "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": False,
    "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27,
    "num_key_value_heads": 16, "q_lora_rank": None,
    "rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}, "routed_scaling_factor": 1.0,
    "scoring_func": "softmax", "topk_group": 1, "topk_method": "greedy", "vocab_size": 102400,
}  # fmt: skip


def read(config: dict[str, Any]) -> ModelConfig:
    return model_from_hf(config, "config.json")


def through_transformers(config: dict[str, Any]) -> dict[str, Any]:
    """config.json as transformers writes it when it has read `config`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config))
        AutoConfig.from_pretrained(folder).save_pretrained(folder)
        return json.loads(path.read_text())


def test_released_v3() -> None:
    """The sizes are those of the paper (arXiv 2412.19437, abstract) and of README_WEIGHTS.md in
    github.com/deepseek-ai/DeepSeek-V3, which has 11.5B for the MTP module."""
    model = read(V3)
    yarn = YarnConfig(40, 4096, 32, 1, mscale=1, mscale_all_dim=1)
    assert model == ModelConfig(
        129280, 61, 3, 7168, 18432, 1e-6, 0.02,
        attention=AttentionConfig(128, 1536, 512, 128, 64, 128, 10000.0, yarn),
        moe=MoEConfig(256, 1, 8, 8, 4, 2048, "sigmoid", normalise=True, scale=2.5),
        mtp=MTPConfig(depth=1),
    )  # fmt: skip
    total, _ = parameter_counts(replace(model, mtp=MTPConfig(depth=0)))
    assert round(total / 1e9, 1) == 671.0
    assert round((parameter_counts(model)[0] - total) / 1e9, 1) == 11.6
    assert softmax_scale(model.attention) == pytest.approx(192**-0.5 * 1.87385, rel=1e-5)


def test_released_v2_lite() -> None:
    """The size is that of the paper (arXiv 2405.04434, appendix B)."""
    model = read(V2_LITE)
    yarn = YarnConfig(40, 4096, 32, 1, mscale=0.707, mscale_all_dim=0.707)
    assert model == ModelConfig(
        102400, 27, 1, 2048, 10944, 1e-6, 0.02,
        attention=AttentionConfig(16, None, 512, 128, 64, 128, 10000.0, yarn),
        moe=MoEConfig(
            64, 2, 6, expert_dim=1408, score="softmax", normalise=False, bias_gamma=0.0
        ),
    )  # fmt: skip
    assert round(parameter_counts(model)[0] / 1e9, 1) == 15.7
    magnitude = 0.1 * 0.707 * math.log(40) + 1
    assert softmax_scale(model.attention) == pytest.approx(192**-0.5 * magnitude**2)


@pytest.mark.parametrize("released", [V3, V2_LITE], ids=["V3", "V2-Lite"])
def test_yarn_of_the_released_models(released: dict[str, Any]) -> None:
    """Pairs up to 10 keep their frequency, those from 23 on are slowed by 40, none is scaled."""
    attention = read(released).attention
    cos, sin = rotations(2, attention)
    torch.testing.assert_close(cos.hypot(sin), torch.ones_like(cos))
    slowing = torch.atan2(sin[1], cos[1]) / rotations_without_yarn(attention)
    assert torch.allclose(slowing[:11], torch.ones(11, dtype=torch.float64))
    assert torch.allclose(slowing[23:], torch.full((9,), 1 / 40, dtype=torch.float64))
    assert slowing[10:24].diff().max() < 0


def rotations_without_yarn(attention: AttentionConfig) -> torch.Tensor:
    cos, sin = rotations(2, replace(attention, yarn=YarnConfig()))
    return torch.atan2(sin[1], cos[1])


@pytest.mark.parametrize("released", [V3, V2_LITE], ids=["V3", "V2-Lite"])
def test_transformers_writes_the_same_model(released: dict[str, Any]) -> None:
    """It writes rope_parameters in place of rope_theta and rope_scaling; we write those again, and
    keep of a config.json what is not the model's."""
    model = read(released | {"rope_theta": 500})
    rewritten = through_transformers(released | {"rope_theta": 500, "eos_token_id": 7})
    assert not {"rope_scaling", "rope_theta"} & set(rewritten)
    assert read(rewritten) == model
    both = rewritten | {"rope_scaling": YARN}
    assert read(both) == read(through_transformers(both)) != model
    ours = hf_from_model(model, rewritten, "fp8", sequence_length=64)
    assert "rope_parameters" not in ours
    assert read(ours) == model
    assert (ours["eos_token_id"], ours["max_position_embeddings"]) == (7, 163840)


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    """Any small architecture; what only training knows has its default."""

    def whole(lowest: int, highest: int) -> int:
        return draw(st.integers(lowest, highest))

    def positive(highest: float) -> float:
        return draw(st.floats(0.01, highest))

    score = draw(st.sampled_from(["sigmoid", "softmax"]))
    groups, size = whole(1, 4), whole(2, 5)
    top_groups = whole(1, groups)
    yarn = YarnConfig(
        factor=1 + positive(100), original_length=whole(1, 10000), beta_fast=positive(50),
        beta_slow=positive(50), mscale=draw(st.sampled_from([0.0, 0.707, 1.0])),
        mscale_all_dim=draw(st.sampled_from([0.0, 0.707, 1.0])),
    )  # fmt: skip
    heads, layers = whole(1, 5), whole(1, 70)
    return ModelConfig(
        vocab_size=whole(257, 1000), layers=layers, dense_layers=whole(0, layers),
        dim=heads * whole(1, 50), dense_dim=whole(1, 300), norm_eps=positive(1),
        init_std=positive(1),
        attention=AttentionConfig(
            heads, draw(st.none() | st.integers(1, 99)), whole(1, 99), whole(1, 99),
            2 * whole(1, 50), whole(1, 99), 1 + positive(1e6),
            draw(st.sampled_from([YarnConfig(), yarn])),
        ),
        moe=MoEConfig(
            groups * size, whole(1, 3), whole(1, size * top_groups), groups, top_groups,
            whole(1, 99), score, normalise=score == "sigmoid" and draw(st.booleans()),
            scale=positive(20), bias_gamma=MoEConfig.bias_gamma if score == "sigmoid" else 0.0,
        ),
        mtp=MTPConfig(depth=whole(0, 2)),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(models(), st.sampled_from(["float32", "bfloat16", "fp8"]))
def test_ours_comes_back_from_transformers(model: ModelConfig, dtype: str) -> None:
    assert not_representable(model) is None
    written = hf_from_model(model, {}, dtype, sequence_length=64)
    assert read(written) == model
    assert read(through_transformers(written)) == model
    assert differences(model, read(written)) == []


@settings(max_examples=300, deadline=None)
@given(
    half=st.integers(2, 64),
    theta=st.floats(2, 1e7),
    factor=st.floats(1.001, 200),
    original=st.integers(1, 10**6),
    betas=st.tuples(st.floats(0.01, 64), st.floats(0.01, 64)),
    mscales=st.tuples(st.floats(0, 2), st.floats(0, 2)),
)
def test_yarn_is_that_of_transformers(
    half: int,
    theta: float,
    factor: float,
    original: int,
    betas: tuple[float, float],
    mscales: tuple[float, float],
) -> None:
    """Frequencies, scale of the rotary part and of the softmax, where the ramp is inverted too."""
    scaling = {
        "rope_type": "yarn", "rope_theta": theta, "factor": factor, "beta_fast": betas[0],
        "beta_slow": betas[1], "mscale": mscales[0], "mscale_all_dim": mscales[1],
        "original_max_position_embeddings": original,
    }  # fmt: skip
    config = DeepseekV3Config(qk_rope_head_dim=2 * half, rope_parameters=dict(scaling))
    frequencies, scale = ROPE_INIT_FUNCTIONS["yarn"](config)

    attention = read(V3 | {"qk_rope_head_dim": 2 * half, "rope_scaling": scaling}).attention
    cos, sin = rotations(2, attention)
    # Each of its frequencies is a sum of two in float32.
    np.testing.assert_allclose(torch.atan2(sin[1], cos[1]), frequencies, rtol=1e-5)
    np.testing.assert_allclose(cos.hypot(sin), scale)
    width = 128 + 2 * half
    expected = yarn_apply_mscale(config.rope_parameters, width**-0.5)
    assert softmax_scale(attention) == pytest.approx(expected, rel=1e-12)


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in V3.items() if k != key}


REFUSED = {
    "another model": (V3 | {"model_type": "llama"}, "model_type"),
    "no model": (without("model_type"), "model_type"),
    "tied embeddings": (V3 | {"tie_word_embeddings": True}, "tie_word_embeddings"),
    "biases": (V3 | {"attention_bias": True}, "attention_bias"),
    "split halves": (V3 | {"rope_interleave": False}, "rope_interleave"),
    "another activation": (V3 | {"hidden_act": "gelu"}, "hidden_act"),
    "MoE in every second layer": (V3 | {"moe_layer_freq": 2}, "moe_layer_freq"),
    "fewer keys": (V3 | {"num_key_value_heads": 8}, "num_key_value_heads"),
    "V3 without a router bias": (V3 | {"topk_method": "greedy"}, "topk_method"),
    "V3 with softmax": (V3 | {"scoring_func": "softmax"}, "scoring_func"),
    "V2 with a router bias": (V2_LITE | {"topk_method": "noaux_tc"}, "topk_method"),
    "V2 with sigmoid": (V2_LITE | {"scoring_func": "sigmoid"}, "scoring_func"),
    "V2 normalised": (V2_LITE | {"norm_topk_prob": True}, "norm_topk_prob"),
    "linear rope": (V3 | {"rope_scaling": {"type": "linear", "factor": 2}}, "linear"),
    "another scale": (V3 | {"rope_scaling": YARN | {"attention_factor": 1.5}}, "attention_factor"),
    "a ramp between pairs": (V3 | {"rope_scaling": YARN | {"truncate": False}}, "truncate"),
    "int4": (V3 | {"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    "fp8 in rows": (
        V3 | {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}},
        "quantization_config",
    ),
    "no width": (without("hidden_size"), "hidden_size is missing"),
    "no word on the query latent": (without("q_lora_rank"), "q_lora_rank is missing"),
    "YaRN without a length": (
        V3 | {"rope_scaling": {"type": "yarn", "factor": 2}},
        "original_max_position_embeddings is missing",
    ),
    "a text for a number": (V3 | {"hidden_size": "7168"}, "hidden_size is '7168'"),
    "a fraction of layers": (V3 | {"num_hidden_layers": 61.0}, "num_hidden_layers"),
    "null experts": (V3 | {"n_routed_experts": None}, "n_routed_experts"),
    "no heads": (V3 | {"num_attention_heads": 0}, "num_attention_heads is 0"),
    "not a number": (V3 | {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    "true for a number": (V3 | {"routed_scaling_factor": True}, "routed_scaling_factor"),
    "a word for a scaling": (V3 | {"rope_scaling": "yarn"}, "rope_scaling is 'yarn'"),
    "a text in a scaling": (V3 | {"rope_scaling": YARN | {"factor": "40"}}, "factor is '40'"),
    "a word for a quantisation": (V3 | {"quantization_config": "fp8"}, "quantization_config"),
}


@pytest.mark.parametrize("config, named", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_implemented_is_refused_in_one_line(config: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        model_from_hf(config, "there/config.json")
    message = str(refusal.value)
    assert message.startswith("there/config.json: ")
    assert named in message
    assert "\n" not in message

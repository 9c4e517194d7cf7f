"""The sections of a config that describe the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from trainer.config.limits import LINE, Range


@dataclass
class YarnConfig:
    """Longer contexts by YaRN (arXiv 2309.00071): rotary frequencies stretched, softmax scaled."""

    factor: Annotated[float, Range(1, 1e6)] = 1.0
    """Stretch of the context; 1 switches YaRN off (40 in V3)."""
    original_length: Annotated[int, Range(1, 10**9)] = 4096
    """Positions that the model was trained on before."""
    beta_fast: Annotated[float, Range(above=0, most=1e6)] = 32.0
    """Pairs that turn more often than this within original_length keep their frequency."""
    beta_slow: Annotated[float, Range(above=0, most=1e6)] = 1.0
    """Pairs that turn less often than this within original_length are slowed by factor."""
    mscale: Annotated[float, Range(0, 1000)] = 1.0
    """Scale of the rotary part: 0.1 x mscale x ln(factor) + 1, over the same of mscale_all_dim; 0
    means not given, as in config.json."""
    mscale_all_dim: Annotated[float, Range(0, 1000)] = 1.0
    """Scale of the softmax: (0.1 x mscale_all_dim x ln(factor) + 1) squared; 0 leaves it alone."""


@dataclass
class AttentionConfig:
    """Multi-head latent attention (MLA)."""

    heads: Annotated[int, Range(1, 10_000)] = 4
    """Attention heads."""
    q_lora_rank: Annotated[int | None, Range(1, 10**6)] = None
    """Width of the query latent; null projects queries directly."""
    kv_lora_rank: Annotated[int, Range(1, 10**6)] = 32
    """Width of the key-value latent."""
    nope_head_dim: Annotated[int, Range(1, 10_000)] = 16
    """Width of a head's query and key without position."""
    rope_head_dim: Annotated[int, Range(1, 10_000)] = 16
    """Width of a head's query, and of the shared key, with rotary position; even."""
    v_head_dim: Annotated[int, Range(1, 10_000)] = 16
    """Width of a head's value."""
    rope_theta: Annotated[float, Range(above=1, most=1e12)] = 10000.0
    """Base of the rotary frequencies."""
    yarn: YarnConfig = field(default_factory=YarnConfig)


@dataclass
class MoEConfig:
    """Mixture of experts."""

    experts: Annotated[int, Range(1, 65536)] = 8
    """Routed experts of a layer."""
    shared_experts: Annotated[int, Range(0, 1000)] = 1
    """Experts that see every token."""
    top_k: Annotated[int, Range(1, 65536)] = 2
    """Routed experts per token."""
    groups: Annotated[int, Range(1, 65536)] = 1
    """Groups of routed experts; must divide experts."""
    top_groups: Annotated[int, Range(1, 65536)] = 1
    """Groups that a token may choose experts from."""
    expert_dim: Annotated[int, Range(1, 10**6)] = 128
    """Inner width of one expert."""
    score: Literal["sigmoid", "softmax"] = "sigmoid"
    """Router scores: sigmoid as DeepSeek-V3, softmax as V2."""
    normalise: bool = True
    """Divide a token's routing weights by their sum."""
    scale: Annotated[float, Range(above=0, most=1e6)] = 1.0
    """Factor on the routing weights (2.5 in V3)."""
    bias_gamma: Annotated[float, Range(0, 1000)] = 0.001
    """Step of the router bias that balances the experts without a loss; 0 leaves it alone."""
    balance_alpha: Annotated[float, Range(0, 1000)] = 0.0001
    """Weight of the sequence-wise balance loss."""


@dataclass
class MTPConfig:
    """Multi-token prediction."""

    depth: Annotated[int, Range(0, 2)] = 0
    """MTP modules: extra tokens predicted; 0, 1 or 2."""
    weight: Annotated[float, Range(0, 1000)] = 0.3
    """Weight of the mean MTP loss."""


@dataclass
class ModelConfig:
    """The architecture of DeepSeek-V3, at any size."""

    vocab_size: Annotated[int, Range(1, 10**7)] = 257
    """Size of the vocabulary; 257 for bytes and the end of a document."""
    layers: Annotated[int, Range(1, 10_000)] = 4
    """Transformer layers, MTP modules not counted."""
    dense_layers: Annotated[int, Range(0, 10_000)] = 1
    """First layers with a dense MLP in place of experts."""
    dim: Annotated[int, Range(1, 10**6)] = 128
    """Model width."""
    dense_dim: Annotated[int, Range(1, 10**7)] = 384
    """Inner width of the dense MLP."""
    norm_eps: Annotated[float, Range(above=0, most=1)] = 1e-6
    """Epsilon of RMSNorm."""
    init_std: Annotated[float, Range(above=0, most=1000)] = 0.02
    """Standard deviation of the initial matrices (0.006 in V3)."""
    init_from: Annotated[str | None, LINE] = None
    """Checkpoint folder in the Hugging Face layout to start from, in place of random weights."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    moe: MoEConfig = field(default_factory=MoEConfig)
    mtp: MTPConfig = field(default_factory=MTPConfig)

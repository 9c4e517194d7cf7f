"""What kind of value each key of a config.json must have; no torch in here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parallel.files.shown import shown
from trainer.errors import ConfigError

_MOST = 10**15  # far beyond any model, and still exact as a float

# (type, least value): of keys that must be there, and of those that may be missing or null.
_COUNT, _COUNT_OR_ZERO, _NUMBER = (int, 1), (int, 0), (float, 0)
REQUIRED = {
    "vocab_size": _COUNT,
    "hidden_size": _COUNT,
    "intermediate_size": _COUNT,
    "moe_intermediate_size": _COUNT,
    "num_hidden_layers": _COUNT,
    "first_k_dense_replace": _COUNT_OR_ZERO,
    "num_attention_heads": _COUNT,
    "n_routed_experts": _COUNT,
    "num_experts_per_tok": _COUNT,
    "kv_lora_rank": _COUNT,
    "qk_nope_head_dim": _COUNT,
    "qk_rope_head_dim": _COUNT,
    "v_head_dim": _COUNT,
    "routed_scaling_factor": _NUMBER,
    "rms_norm_eps": _NUMBER,
}
OPTIONAL = {
    "q_lora_rank": _COUNT,
    "num_key_value_heads": _COUNT,
    "n_shared_experts": _COUNT_OR_ZERO,
    "n_group": _COUNT,
    "topk_group": _COUNT,
    "num_nextn_predict_layers": _COUNT_OR_ZERO,
    "num_mtp_layers": _COUNT_OR_ZERO,
    "max_position_embeddings": _COUNT,
    "initializer_range": _NUMBER,
    "rope_theta": _NUMBER,
}
YARN_REQUIRED = {"original_max_position_embeddings": _COUNT}
YARN_OPTIONAL = dict.fromkeys(
    ("rope_theta", "factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"), _NUMBER
)

Kinds = Mapping[str, tuple[type, int]]


def require_types(config: Any, where: str, required: Kinds, optional: Kinds) -> None:
    """Raise ConfigError, which names the first key at fault, unless `config` is an object with
    these keys and kinds of values."""
    if not isinstance(config, dict):
        raise ConfigError(f"{where} is {shown(config)}, must be an object of keys and values")
    for key, (kind, least) in {**required, **optional}.items():
        value = config.get(key)
        if value is None and key in optional:
            continue
        if key not in config:
            raise ConfigError(f"{where}: {key} is missing")
        kinds = (int, float) if kind is float else (int,)
        number = isinstance(value, kinds) and not isinstance(value, bool)
        if not (number and least <= value <= _MOST):  # type: ignore[operator]
            what = "a whole number" if kind is int else "a number"
            raise ConfigError(
                f"{where}: {key} is {shown(value)}, must be {what}, {least} or more, at most "
                f"{_MOST:g}"
            )

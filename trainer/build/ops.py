"""What multiplies in a run: the Ops that its config and its device call for."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch

from parallel.ops.attention_kernel import AttentionShape, attention_kernel
from parallel.ops.fp8.ops import Fp8Ops
from parallel.ops.kernels import Kernels
from parallel.ops.ops import Ops
from parallel.ops.precision import PRECISIONS
from trainer.config.schema import Config
from trainer.errors import ConfigError


def make_ops(config: Config, device: torch.device) -> Ops:
    """It makes weights on meta, without memory. Raises AttentionError or ConfigError where the
    device cannot run what run.attention or run.kernels asks for."""
    precision, meta = PRECISIONS[config.precision.parameters], torch.device("meta")
    attention = attention_kernel(config.run.attention, _attention_shape(config), device)
    kernels, kind = Kernels.compiled() if config.run.compile else Kernels(), Ops
    if config.precision.linear == "fp8":
        kind = Fp8Ops
    if kernels_of(config, device) == "triton":
        from parallel.ops.triton.fp8_ops import TritonFp8Ops
        from parallel.ops.triton.kernels import triton_kernels

        kernels, kind = triton_kernels(), TritonFp8Ops if kind is Fp8Ops else Ops
    return kind(precision, kernels=kernels, weights_on=meta, attention_kernel=attention)


def kernels_of(config: Config, device: torch.device) -> Literal["torch", "triton"]:
    """Whose kernels multiply; on the device of a plan, which has no kernels, torch's are counted.
    Raises ConfigError where those that are asked for cannot."""
    asked, there = config.run.kernels, find_spec("triton") is not None
    if asked == "triton" and device.type == "cpu":
        raise ConfigError(
            "run.kernels = triton needs a GPU, but the run is on the CPU: set run.kernels to "
            "torch, or run.device to cuda"
        )
    if asked == "triton" and not there:
        raise ConfigError(
            "run.kernels = triton: Triton is not installed: pip install triton, or set run.kernels "
            "to torch"
        )
    wanted = asked == "triton" or (asked == "auto" and config.precision.linear == "fp8" and there)
    return "triton" if wanted and device.type == "cuda" else "torch"


def _attention_shape(config: Config) -> AttentionShape:
    c, dtype = config.model.attention, PRECISIONS[config.precision.parameters].parameters
    return AttentionShape(c.heads, c.nope_head_dim + c.rope_head_dim, c.v_head_dim, dtype)

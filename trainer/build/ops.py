"""What multiplies in a run: the Ops that its config and its device call for."""

from __future__ import annotations

from typing import Literal

import torch

from parallel.expert.wire import Fp8Wire, PlainWire, Wire
from parallel.ops.attention_kernel import AttentionShape, attention_kernel
from parallel.ops.fp8.ops import Fp8Ops
from parallel.ops.fp8.tiles import tiles_along_rows
from parallel.ops.kernels import Kernels
from parallel.ops.ops import Ops
from parallel.ops.precision import PRECISIONS
from parallel.ops.pretended import pretends
from parallel.ops.sum_rows import add_rows
from parallel.ops.triton.choice import ScaledProducts, chosen_products
from parallel.ops.triton.compiler import INSTALLED
from parallel.ops.triton.fp8_ops import TritonFp8Ops
from parallel.ops.triton.kernels import with_triton
from parallel.ops.triton.quantise import quantise_rows
from parallel.ops.triton.sum_rows import sum_rows
from parallel.tape.weight_gradients import WeightGradients
from trainer.config.schema import Config
from trainer.errors import ConfigError


def make_ops(config: Config, device: torch.device) -> Ops:
    """It makes weights on meta, without memory. Raises AttentionError or ConfigError where the
    device cannot run what run.attention or run.kernels asks for."""
    precision, meta = PRECISIONS[config.precision.parameters], torch.device("meta")
    attention = attention_kernel(config.run.attention, _attention_shape(config), device)
    kernels = Kernels.compiled() if config.run.compile else Kernels()
    triton, fp8 = kernels_of(config, device) == "triton", config.precision.linear == "fp8"
    if triton:
        kernels = with_triton(kernels)
    if triton and fp8:
        products = chosen_products(device) if device.type == "cuda" else ScaledProducts()
        return TritonFp8Ops(
            precision, WeightGradients(), kernels, meta, attention, products=products
        )
    return (Fp8Ops if fp8 else Ops)(precision, WeightGradients(), kernels, meta, attention)


def make_wire(config: Config, device: torch.device) -> Wire:
    """What rounds and adds up rows that travel."""
    triton = kernels_of(config, device) == "triton"
    add = sum_rows if triton else add_rows
    if config.mesh.dispatch_dtype == "same":
        return PlainWire(add)
    return Fp8Wire(add, quantise_rows if triton else tiles_along_rows)


def kernels_of(config: Config, device: torch.device) -> Literal["torch", "triton"]:
    """Whose kernels multiply. A plan's device runs none, and takes those of a GPU with Triton.
    Raises ConfigError where those that are asked for cannot."""
    asked, there = config.run.kernels, INSTALLED or pretends(device)
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
    return "torch" if device.type == "cpu" or not wanted else "triton"


def _attention_shape(config: Config) -> AttentionShape:
    c, dtype = config.model.attention, PRECISIONS[config.precision.parameters].parameters
    return AttentionShape(c.heads, c.nope_head_dim + c.rope_head_dim, c.v_head_dim, dtype)

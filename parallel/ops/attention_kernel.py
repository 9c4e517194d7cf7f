"""Which kernel of attention a run uses: chosen once, before the first step, so that it is known.

On CUDA a kernel is tried, forward and backward, in the shape and type of the model: which of them
take queries of 192 with values of 128 depends on the GPU and on the versions of torch and cuDNN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from parallel.errors import TandemError
from parallel.ops.attention import KERNELS, AttentionKernel, causal_attention
from parallel.ops.pretended import pretends

AskedKernel: TypeAlias = Literal["auto"] | AttentionKernel

_POSITIONS = 128  # of the trial: a whole tile of each kernel


class AttentionError(TandemError):
    """The kernel of attention that a config asks for cannot run here."""

    exit_code = 2


@dataclass(frozen=True)
class AttentionShape:
    """heads; query: width of queries and keys per head; value: of values. dtype: of all three."""

    heads: int
    query: int
    value: int
    dtype: torch.dtype

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"queries of {self.query} and values of {self.value} per head in {dtype}"


def attention_kernel(
    asked: AskedKernel, shape: AttentionShape, device: torch.device
) -> AttentionKernel | None:
    """The kernel for all layers; of auto, the first of KERNELS that runs. None on a device that
    only pretends: it has one of its own. Raises AttentionError where the asked one cannot run."""
    if pretends(device):
        return None
    tried = KERNELS if asked == "auto" else (asked,)
    problems: list[str] = []
    for kernel in tried:
        problem = _problem(kernel, shape, device)
        if problem is None:
            return kernel
        problems.append(problem)
    raise AttentionError(
        f"run.attention = {asked} cannot run on {device.type} with {shape}: {_said(problems)}; "
        f"set it to auto, which takes the first of {', '.join(KERNELS)} that can"
    )


def _said(problems: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(problems))


def _problem(kernel: AttentionKernel, shape: AttentionShape, device: torch.device) -> str | None:
    """Why a kernel cannot run, if so."""
    if device.type == "cuda":
        return _tried(kernel, shape, device)
    if kernel not in ("flash", "math"):
        return "a CPU has the kernels flash and math"
    if kernel == "flash" and shape.value > shape.query:
        return "the kernel takes no values wider than queries"
    return None


def _tried(kernel: AttentionKernel, shape: AttentionShape, device: torch.device) -> str | None:
    """Run it once, forward and backward; the first line of what it says against that."""
    widths = (shape.query, shape.query, shape.value)
    # Positions before heads in memory, as the model's are.
    inputs = [
        torch.zeros(
            1, _POSITIONS, shape.heads, width, dtype=shape.dtype, device=device, requires_grad=True
        )
        for width in widths
    ]
    query, key, value = (x.transpose(1, 2) for x in inputs)
    try:
        out = causal_attention(query, key, value, 1.0, kernel)
        torch.autograd.grad(out, inputs, torch.zeros_like(out))
    except ImportError as error:
        return f"package flash_attn_interface cannot be imported ({error})"
    except (RuntimeError, AssertionError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return None

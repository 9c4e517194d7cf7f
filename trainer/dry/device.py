"""A device that no machine has: what is on it has sizes and types, and no numbers.

torch lets a program add one kind of device of its own. Unlike a fake "cuda" it runs forward and
backward on every build of torch, without a driver.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.utils import backend_registration

NAME = "gpu"


def pretended_gpu() -> torch.device:
    """The device `gpu`. Registers it with torch, for the rest of the process, at the first call,
    which has to come before the first backward of the process: then autograd counts devices."""
    _register()
    return torch.device(NAME, 0)


class _Module(backend_registration._DummyBackendModule):
    """What torch asks of a device. autocast asks every device that there is, checkpoints do too."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


@functools.cache
def _register() -> torch.library.Library:
    """What this returns must live as long as the process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    kernels = torch.library.Library("aten", "IMPL")
    kernels.impl("scaled_dot_product_attention", _attention, "AutogradPrivateUse1")
    return kernels


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """By a fused kernel, as a GPU has: a device unknown to torch would keep all scores."""
    out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale
    )[0]
    return out

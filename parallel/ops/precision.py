"""The types of numbers that a run computes with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch


@dataclass(frozen=True)
class Precision:
    """parameters: of weights and activations. accurate: of what must not lose digits whatever the
    parameters are: gradients that accumulate, master weights, the router, rotary tables, losses."""

    parameters: torch.dtype = torch.float32
    accurate: torch.dtype = torch.float32


PRECISIONS: Mapping[str, Precision] = MappingProxyType(
    {
        "bfloat16": Precision(torch.bfloat16, torch.float32),
        "float32": Precision(torch.float32, torch.float32),
        "float64": Precision(torch.float64, torch.float64),
    }
)
"""By the name that a config gives them."""


def accurate_type(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums of many numbers of type `dtype` are kept: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)

"""The types of numbers that a run computes with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch


@dataclass(frozen=True)
class Precision:
    """parameters: of weights, activations and gradients. accurate: of what must not lose digits
    whatever the parameters are, such as rotary tables and the router bias."""

    parameters: torch.dtype = torch.float32
    accurate: torch.dtype = torch.float32


PRECISIONS: Mapping[str, Precision] = MappingProxyType(
    {
        "float32": Precision(torch.float32, torch.float32),
        "float64": Precision(torch.float64, torch.float64),
    }
)
"""By the name that a config gives them."""

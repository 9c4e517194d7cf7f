"""Triton where it is installed, and what starts its programs.

Memory is planned on a device that only pretends, and on machines without Triton: there, what a
function allocates around a kernel is all that happens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parallel.ops.pretended import pretends

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

INSTALLED = triton is not None
__all__ = ["INSTALLED", "ceil_div", "jit", "launch", "next_power_of_2", "tl"]


def jit(function: Callable[..., Any]) -> Any:
    """triton.jit; the function itself where Triton is not."""
    return function if triton is None else triton.jit(function)


def launch(kernel: Any, grid: tuple[int, ...], first: Tensor, *rest: Any, **options: Any) -> None:
    """Start the programs of a kernel on these arguments, if there are any, where the first is."""
    if not all(grid):
        return
    if pretends(first.device):
        launched(first)
    else:
        kernel[grid](first, *rest, **options)


@torch.library.custom_op("tandem::launched", mutates_args=())
def launched(first: Tensor) -> None:
    """What a device that only pretends sees of a launch."""


@launched.register_fake
def _(first: Tensor) -> None:
    return None


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def next_power_of_2(number: int) -> int:
    """The smallest that is not below a positive number."""
    return 1 << (number - 1).bit_length()

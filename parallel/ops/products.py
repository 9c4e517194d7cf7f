"""Matrix products by type: which kernel multiplies, and in which type the sums are kept.

A product takes the type of its left operand. One that accumulates adds to a buffer that is at least
float32, and rounds nothing on the way: bfloat16 operands are multiplied exactly in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

LARGE = 2**22
"""Multiplications from which on oneDNN saves more than it takes to find its kernel."""


def linear_product(x: Tensor, weight_OI: Tensor) -> Tensor:
    """x [..., I] @ weight transposed -> [..., O], in the type of x."""
    weight_OI = weight_OI.to(x.dtype)
    if emulated(x):
        return linear_product(x.float(), weight_OI.float()).to(x.dtype)
    if _onednn_is_faster(x) and x.numel() * len(weight_OI) >= LARGE:
        return torch.ops.mkldnn._linear_pointwise(x, weight_OI, None, "none", [], "")
    return torch.nn.functional.linear(x, weight_OI)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [..., I] @ b [I, O] -> [..., O], in the type of a."""
    return linear_product(a, b.t())


def add_product(into_OI: Tensor, grad_TO: Tensor, x_TI: Tensor) -> None:
    """into += grad transposed @ x, summed in the type of `into`."""
    if into_OI.dtype == grad_TO.dtype == x_TI.dtype:
        if _onednn_is_faster(x_TI) and grad_TO.numel() * x_TI.shape[1] >= 2 * LARGE:
            into_OI.add_(linear_product(grad_TO.t(), x_TI.t()))
        else:
            into_OI.addmm_(grad_TO.t(), x_TI)
    elif not into_OI.is_cpu and grad_TO.dtype == x_TI.dtype:
        torch.addmm(into_OI, grad_TO.t(), x_TI, out_dtype=into_OI.dtype, out=into_OI)
    else:
        narrow = torch.bfloat16 in (grad_TO.dtype, x_TI.dtype)
        with _bfloat16_products(narrow and grad_TO.dtype == x_TI.dtype):
            into_OI.addmm_(grad_TO.to(into_OI.dtype).t(), x_TI.to(into_OI.dtype))


def emulated(x: Tensor) -> bool:
    """Whether this machine multiplies x faster in float32, rounding the result: bfloat16 on a CPU
    with no instructions for it, where torch's own product takes a hundred times as long."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and not _cpu_has_bfloat16()


def compiles_by_shape(x: Tensor) -> bool:
    """Whether products with x run by oneDNN, which compiles a kernel for every new shape: a tenth
    of a millisecond each, so that shapes had better be few."""
    native = x.dtype == torch.bfloat16 and x.device.type == "cpu" and _cpu_has_bfloat16()
    return native or _onednn_is_faster(x)


def _onednn_is_faster(x: Tensor) -> bool:
    """Whether this machine multiplies float32 up to twice as fast with oneDNN as with what torch
    calls by itself, which is MKL: that uses AVX-512 on processors of its own maker only."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and _mkl_is_slow()


@functools.cache
def _mkl_is_slow() -> bool:
    capability = torch.cpu.get_capabilities()
    amd = str(capability.get("cpu_name", "")).startswith("AMD")
    return amd and bool(capability.get("avx512_f")) and torch.backends.mkldnn.is_available()


@functools.cache
def _cpu_has_bfloat16() -> bool:
    capability = torch.cpu.get_capabilities()
    return bool(capability.get("avx512_bf16") or capability.get("bf16"))


@contextmanager
def _bfloat16_products(exact: bool) -> Iterator[None]:
    """Within, a CPU that has bfloat16 instructions may multiply float32 matrices with them, and
    still sums in float32. exact: all operands are bfloat16 numbers, so that nothing is lost."""
    if not (exact and _cpu_has_bfloat16()):
        yield
        return
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before

"""What is computed between products, in Triton, is what its plain version computes in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from parallel.ops.cross_entropy import IGNORED
from parallel.ops.fp8.tiles import tiles_along_rows
from parallel.ops.swiglu import WEIGHTED_SWIGLU
from parallel.ops.triton.softmax import gradient_, loss_and_normaliser
from parallel.ops.triton.sum_rows import sum_rows
from parallel.ops.triton.swiglu import (
    weighted_swiglu,
    weighted_swiglu_backward,
    weighted_swiglu_in_fp8,
)

pytestmark = pytest.mark.gpu
HALF_A_STEP = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8}


def numbers(*shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(device, dtype)


def near(found: Tensor, wanted: Tensor, relative: float) -> None:
    torch.testing.assert_close(found.double(), wanted, rtol=relative, atol=1e-5)


@pytest.mark.parametrize("dtype", list(HALF_A_STEP))
@pytest.mark.parametrize(("rows", "inner"), [(37, 256), (5, 100), (0, 128)])
def test_swiglu(rows: int, inner: int, dtype: torch.dtype, device: torch.device) -> None:
    gate_up = numbers(rows, 2 * inner, device=device, dtype=dtype)
    grad = numbers(rows, inner, device=device, dtype=dtype)
    weight = numbers(rows, device=device, dtype=torch.float32)
    (wanted,) = WEIGHTED_SWIGLU.forward(gate_up.double(), weight.double())
    near(weighted_swiglu(gate_up, weight), wanted, HALF_A_STEP[dtype])
    both = [(gate_up, gate_up.double())]
    if inner % 128 == 0:
        tiled = tiles_along_rows(gate_up)
        both.append((tiled, tiled.values(torch.float64)))
    for source, values in both:
        exact = WEIGHTED_SWIGLU.backward(grad.double(), values, weight.double())
        of_gate_up, of_weight = weighted_swiglu_backward(grad, source, weight)
        near(of_gate_up, exact[0], HALF_A_STEP[dtype])
        near(of_weight, exact[1], 1e-4)
        (again,) = WEIGHTED_SWIGLU.forward(values, weight.double())
        in_fp8 = weighted_swiglu_in_fp8(source, weight).values(torch.float64)
        torch.testing.assert_close(in_fp8, again, rtol=0.07, atol=2e-2)


def test_swiglu_in_fp8_is_rounded_once(device: torch.device) -> None:
    gate_up = numbers(9, 512, device=device, dtype=torch.float32)
    weight = numbers(9, device=device, dtype=torch.float32)
    wanted = tiles_along_rows(weighted_swiglu(gate_up, weight))
    found = weighted_swiglu_in_fp8(gate_up, weight)
    assert torch.equal(found.scales, wanted.scales)
    assert torch.equal(found.codes.view(torch.uint8), wanted.codes.view(torch.uint8))


@pytest.mark.parametrize("dtype", list(HALF_A_STEP))
def test_sums_of_rows(dtype: torch.dtype, device: torch.device) -> None:
    x = numbers(60, 1100, device=device, dtype=dtype)
    row = torch.arange(60, device=device) ** 2 % 17  # seven of 0 to 16, and none of the others
    wanted = x.new_zeros(20, 1100, dtype=torch.float64).index_add_(0, row, x.double())
    near(sum_rows(x, row, 20), wanted, HALF_A_STEP[dtype])
    assert not sum_rows(x[:0], row[:0], 3).any()


@pytest.mark.parametrize("dtype", list(HALF_A_STEP))
def test_cross_entropy(dtype: torch.dtype, device: torch.device) -> None:
    logits = numbers(6, 5000, device=device, dtype=dtype) * 10 + 100
    target = torch.tensor([0, 4999, IGNORED, 4096, 17, IGNORED], device=device)
    exact = logits.double().requires_grad_()
    wanted = torch.nn.functional.cross_entropy(
        exact, target, ignore_index=IGNORED, reduction="none"
    )
    wanted.sum().backward()
    loss, normaliser = loss_and_normaliser(logits, target)
    near(loss, wanted.detach(), 1e-5)
    near(normaliser, exact.detach().logsumexp(-1), 1e-6)
    assert exact.grad is not None
    near(gradient_(logits, normaliser, target), exact.grad, HALF_A_STEP[dtype])

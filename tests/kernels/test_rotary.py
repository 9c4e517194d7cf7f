"""Heads joined and turned in Triton are those of parallel/ops/rotary.py, and so are gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from parallel.ops.rotary import ROTARY as PLAIN
from parallel.ops.triton.rotary import ROTARY

pytestmark = pytest.mark.gpu
POSITIONS, HEADS, STILL, TURNED, VALUE = 5, 18, 24, 12, 20
TOKENS = 2 * POSITIONS
HALF_A_STEP = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8}


def numbers(*shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(device, dtype)


def near(found: Tensor | None, wanted: Tensor | None) -> None:
    assert found is not None and wanted is not None
    relative = HALF_A_STEP[found.dtype]
    torch.testing.assert_close(found.double(), wanted, rtol=relative, atol=1e-5)


def angles(device: torch.device) -> tuple[Tensor, Tensor]:
    angle = numbers(POSITIONS, TURNED // 2, device=device, dtype=torch.float32)
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("dtype", list(HALF_A_STEP))
def test_queries(dtype: torch.dtype, device: torch.device) -> None:
    of_positions = angles(device)
    exact_angles = [each.double() for each in of_positions]
    x = numbers(TOKENS, HEADS, STILL + TURNED, device=device, dtype=dtype).requires_grad_()
    grad = numbers(*x.shape, device=device, dtype=dtype) * 2
    exact = x.detach().double().requires_grad_()
    wanted, found = PLAIN.queries(exact, *exact_angles), ROTARY.queries(x, *of_positions)
    wanted.backward(grad.double())
    found.backward(grad)
    near(found, wanted)
    near(x.grad, exact.grad)


@pytest.mark.parametrize("dtype", list(HALF_A_STEP))
def test_keys_whose_turned_part_all_heads_share(dtype: torch.dtype, device: torch.device) -> None:
    of_positions = angles(device)
    exact_angles = [each.double() for each in of_positions]
    key_value = numbers(TOKENS, HEADS, STILL + VALUE, device=device, dtype=dtype).requires_grad_()
    shared = numbers(TOKENS, TURNED, device=device, dtype=dtype).requires_grad_()
    grad = numbers(TOKENS, HEADS, STILL + TURNED, device=device, dtype=dtype)
    exact = [each.detach().double().requires_grad_() for each in (key_value, shared)]
    wanted = PLAIN.keys(exact[0][..., :STILL], exact[1], *exact_angles)
    found = ROTARY.keys(key_value[..., :STILL], shared, *of_positions)
    wanted.backward(grad.double())
    found.backward(grad)
    near(found, wanted)
    near(key_value.grad, exact[0].grad)
    near(shared.grad, exact[1].grad)

"""Heads joined and turned in Triton are those of trainer/model/rope.py, and so are gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from parallel.ops.triton.rotary import join_rotated, sum_turned_back
from trainer.model.rope import rotate

pytestmark = pytest.mark.gpu
BATCH, POSITIONS, HEADS, STILL, TURNED, VALUE = 2, 5, 18, 24, 12, 20
HALF_A_STEP = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8}


def numbers(*shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(device, dtype)


def near(found: Tensor, wanted: Tensor) -> None:
    relative = HALF_A_STEP[found.dtype]
    torch.testing.assert_close(found.double(), wanted, rtol=relative, atol=1e-5)


def angles(device: torch.device) -> tuple[Tensor, Tensor]:
    angle = numbers(POSITIONS, TURNED // 2, device=device, dtype=torch.float32)
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("dtype", list(HALF_A_STEP))
def test_queries(dtype: torch.dtype, device: torch.device) -> None:
    cos, sin = angles(device)
    x = numbers(BATCH, POSITIONS, HEADS, STILL + TURNED, device=device, dtype=dtype)
    exact = x.double().requires_grad_()
    wanted = rotate(exact, cos.double(), sin.double())
    grad = numbers(*x.shape[:-1], STILL + TURNED, device=device, dtype=dtype) * 2
    wanted.backward(grad.double())
    assert exact.grad is not None
    for backward, given, result in ((False, x, wanted.detach()), (True, grad, exact.grad)):
        still, turned = given.flatten(0, 1).split([STILL, TURNED], -1)
        near(join_rotated(still, turned, cos, sin, backward), result.flatten(0, 1))


@pytest.mark.parametrize("dtype", list(HALF_A_STEP))
def test_keys_whose_turned_part_all_heads_share(dtype: torch.dtype, device: torch.device) -> None:
    cos, sin = angles(device)
    key_value = numbers(BATCH * POSITIONS, HEADS, STILL + VALUE, device=device, dtype=dtype)
    still, shared = key_value[..., :STILL], numbers(
        BATCH * POSITIONS, 1, TURNED, device=device, dtype=dtype
    )  # fmt: skip
    exact = shared.double().requires_grad_()
    turned = rotate(exact.view(BATCH, POSITIONS, 1, TURNED), cos.double(), sin.double())
    expanded = turned.flatten(0, 1).expand(-1, HEADS, -1)
    wanted = torch.cat([still.double(), expanded], -1)
    near(join_rotated(still, shared.expand(-1, HEADS, -1), cos, sin), wanted.detach())
    grad = numbers(*wanted.shape, device=device, dtype=dtype)
    wanted.backward(grad.double())
    assert exact.grad is not None
    near(sum_turned_back(grad[..., STILL:], cos, sin), exact.grad.squeeze(1))

"""Layers that multiply with these kernels get the numbers of those that emulate fp8."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from parallel.ops.accumulate import set_gradient
from parallel.ops.fp8.ops import Fp8Ops
from parallel.ops.kernels import Kernels
from parallel.ops.ops import Ops
from parallel.ops.triton.fp8_ops import TritonFp8Ops
from parallel.ops.triton.kernels import with_triton
from parallel.tape.tape import Tape
from tests.kernels.ragged import ROWS, SIZES, groups

pytestmark = pytest.mark.gpu
WIDTH, OUTPUTS = 256, 136
ONE_MATRIX = ("linear", "attention")


class Products:
    """A product of an Ops, forward and backward. y: what it gave, and all gradients."""

    def __init__(self, ops: Ops, name: str, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(3)

        def random(*shape: int, scale: float = 1.0) -> Tensor:
            numbers = torch.randn(shape, generator=generator) * scale
            return numbers.bfloat16().to(device)

        self.x = random(ROWS, WIDTH).requires_grad_()
        self.row_weight = (random(ROWS).float().abs() + 0.5).requires_grad_()
        inner = WIDTH // 2 if "swiglu" in name else WIDTH
        shape = (
            (OUTPUTS, inner) if name in ("linear", "attention") else (len(SIZES), OUTPUTS, inner)
        )
        self.weight = nn.Parameter(random(*shape, scale=0.1))
        set_gradient(self.weight, torch.zeros(shape, device=device))
        self.y = self.run(ops, device)[name]()
        self.y.backward(random(*self.y.shape, scale=1e-3))
        ops.deferred.drain()

    def run(self, ops: Ops, device: torch.device) -> dict[str, Callable[[], Tensor]]:
        of_rows = groups(device)
        return {
            "linear": lambda: ops.linear(ops.operand(Tape(), self.x, False), self.weight),
            "attention": lambda: ops.attention_output(self.x * 1, self.weight),
            "grouped": lambda: ops.grouped_linear(self.x, self.weight, of_rows),
            "swiglu": lambda: ops.weighted_swiglu_linear(
                self.x, self.row_weight, self.weight, of_rows, True
            ),
        }

    def numbers(self) -> list[Tensor]:
        gradients = [each.grad for each in (self.x, self.row_weight, self.weight)]
        return [self.y.detach(), *(each for each in gradients if each is not None)]


@pytest.mark.parametrize("name", ["linear", "attention", "grouped"])
def test_fp8_products_of_layers(name: str, device: torch.device) -> None:
    """To the rounding of bfloat16 results, which few sums are near to."""
    emulated = Products(Fp8Ops(), name, device).numbers()
    by_kernels = Products(TritonFp8Ops(), name, device).numbers()
    for wanted, found in zip(emulated, by_kernels, strict=True):
        assert found.dtype == wanted.dtype
        assert (found - wanted).float().norm() < 1e-3 * wanted.float().norm()


def test_a_swiglu_that_rounds_once(device: torch.device) -> None:
    """What is in fp8 after it has other codes here and there: as near as these are."""
    emulated = Products(Fp8Ops(), "swiglu", device).numbers()
    by_kernels = Products(TritonFp8Ops(kernels=with_triton(Kernels())), "swiglu", device).numbers()
    for wanted, found in zip(emulated, by_kernels, strict=True):
        assert (found - wanted).float().norm() < 0.03 * wanted.float().norm()


def test_weights_are_read_anew_when_they_have_changed(device: torch.device) -> None:
    ops, weight = TritonFp8Ops(), nn.Parameter(torch.ones(128, 128, device=device).bfloat16())
    x = torch.ones(4, 128, device=device).bfloat16()
    first = ops.linear(x, weight)
    weight.data.mul_(2)
    assert torch.equal(ops.linear(x, weight), first)
    ops.weights_changed()
    assert torch.equal(ops.linear(x, weight), 2 * first)


def test_experts_in_bfloat16(device: torch.device) -> None:
    plain = Products(Ops(kernels=Kernels()), "swiglu", device).numbers()
    by_kernels = Products(Ops(kernels=with_triton(Kernels())), "swiglu", device).numbers()
    for wanted, found in zip(plain, by_kernels, strict=True):
        assert (found - wanted).float().norm() < 0.01 * wanted.float().norm()

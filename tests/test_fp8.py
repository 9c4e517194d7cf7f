"""Training in fp8: every number's rounding, every product's error, the layouts, and the loss."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from parallel.expert.dispatch import Received
from parallel.expert.experts import GroupedExperts
from parallel.expert.wire import Fp8Wire
from parallel.ops.accumulate import set_gradient
from parallel.ops.fp8.e5m6 import round_e5m6
from parallel.ops.fp8.hopper import hopper_product
from parallel.ops.fp8.ops import Fp8Ops
from parallel.ops.fp8.rounded import Rounded
from parallel.ops.fp8.tiles import (
    CODE,
    LARGEST,
    TILE,
    Tiled,
    blocks,
    tiles_along_columns,
    tiles_along_rows,
)
from parallel.ops.groups import Groups
from parallel.ops.ops import Ops
from parallel.tape.collective import Collective
from parallel.tape.tape import Tape
from tests.distributed import run_world
from tests.test_equivalence import Case, run_cases

EVERY_CODE = torch.arange(256, dtype=torch.uint8).view(CODE).double()
FINITE = EVERY_CODE[EVERY_CODE.isfinite()].sort().values


# ---- numbers ----


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 2**31), st.booleans())
@pytest.mark.parametrize(
    ("make", "tile"),
    [(tiles_along_rows, (1, TILE)), (tiles_along_columns, (TILE, 1)), (blocks, (TILE, TILE))],
)
def test_each_number_becomes_the_nearest_of_its_tile(
    make: Callable[[Tensor], Tiled],
    tile: tuple[int, int],
    rows: int,
    columns: int,
    seed: int,
    zeros: bool,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator) * torch.logspace(-8, 8, columns)
    x[:, : columns // 2] *= not zeros
    tiled = make(x)
    down, across = (-(-rows // tile[0]), -(-columns // tile[1]))
    assert tiled.scales.shape == (down, across) and tiled.codes.dtype == CODE
    for i in range(down):
        for j in range(across):
            part = slice(i * tile[0], (i + 1) * tile[0]), slice(j * tile[1], (j + 1) * tile[1])
            scale = max(float(x[part].abs().max()), 1e-4) / LARGEST
            assert float(tiled.scales[i, j]) == pytest.approx(scale, rel=1e-6)
            wanted = x[part].double() / tiled.scales[i, j].double()
            nearest = (wanted.flatten()[:, None] - FINITE).abs().amin(1)
            off = (wanted - tiled.codes[part].double()).abs().flatten()
            # The division is rounded to float32 before it is rounded to fp8.
            assert (off <= nearest + 1e-6 * wanted.abs().flatten()).all()
            values = tiled.codes[part].double() * tiled.scales[i, j].double()
            np.testing.assert_allclose(tiled.values()[part], values, rtol=1e-7)


def test_a_power_of_two_adds_no_rounding() -> None:
    x = torch.randn(7, 300, generator=torch.Generator().manual_seed(0))
    scales = tiles_along_rows(x, power_of_two=True).scales
    assert torch.equal(scales.log2(), scales.log2().round())
    plain = tiles_along_rows(x).scales
    assert (scales >= plain).all() and (scales < 2 * plain).all()
    again = tiles_along_rows(x, power_of_two=True).values()
    assert torch.equal(tiles_along_rows(again, power_of_two=True).values(), again)


def test_e5m6_has_six_bits_after_the_leading_one() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 200, generator=generator) * torch.logspace(-9, 3, 200)
    rounded = round_e5m6(x)
    off = (rounded - x).abs()
    # Half a step of 2^-6; below 2^-14 of a largest number of 2^16, steps no longer shrink.
    amax = torch.cat([half.abs().amax(1, keepdim=True).expand(-1, half.shape[1])
                      for half in x.split(128, 1)], 1)  # fmt: skip
    assert (off <= torch.maximum(x.abs() * 2**-7, amax * 2**-35)).all()
    assert torch.equal(round_e5m6(rounded), rounded)
    assert torch.equal(round_e5m6(x.bfloat16()).float(), round_e5m6(x.bfloat16().float()))


# ---- products ----


class Product:
    """x, a weight, and the gradient of the product, through any Ops."""

    def __init__(self, ops: Ops, grouped: bool = False) -> None:
        generator = torch.Generator().manual_seed(1)
        tokens, width, outputs = 300, 200, 130
        shape = (3, outputs, width) if grouped else (outputs, width)
        self.x = torch.randn(tokens, width, generator=generator).requires_grad_()
        self.weight = nn.Parameter(torch.randn(shape, generator=generator) * 0.1)
        set_gradient(self.weight, torch.zeros(shape))
        grad = torch.randn(tokens, outputs, generator=generator) * 1e-4
        if grouped:
            ends_E = torch.tensor([140, 140, tokens], dtype=torch.int32)
            self.y = ops.grouped_linear(self.x, self.weight, Groups(ends_E, tokens))
        else:
            self.y = ops.linear(self.x, self.weight)
        self.y.backward(grad)
        ops.deferred.drain()
        self.numbers = [self.y.detach(), self.x.grad, self.weight.grad]


@pytest.mark.parametrize("grouped", [False, True])
def test_a_product_is_as_near_as_fp8_allows(grouped: bool) -> None:
    """Each operand is off by 2^-4 of itself at most, 2.5 % root mean square; a sum of as many
    products by about sqrt(2) of that."""
    exact, narrow = Product(Ops(), grouped), Product(Fp8Ops(), grouped)
    for wanted, found in zip(exact.numbers, narrow.numbers):
        off = float((found - wanted).norm() / wanted.norm())
        assert 0.02 < off < 0.045


def test_a_product_is_that_of_its_codes_block_by_block() -> None:
    """What tensor cores give whose partial sums of 128 products are promoted to float32."""
    product = Product(Fp8Ops())
    a, b = tiles_along_rows(product.x.detach()), blocks(product.weight.detach())
    wanted = torch.zeros(product.y.shape, dtype=torch.float64)
    scales = b.scales.repeat_interleave(TILE, 0)[: len(product.weight)].double()
    for block in range(a.scales.shape[1]):
        part = slice(block * TILE, (block + 1) * TILE)
        sums = a.codes[:, part].double() @ b.codes[:, part].double().t()
        wanted += sums * a.scales[:, block, None].double() * scales[None, :, block]
    np.testing.assert_allclose(product.y.detach(), wanted, rtol=1e-5, atol=1e-5)


def test_without_promotion_partial_sums_lose_digits() -> None:
    """K = 4096, as arXiv 2412.19437 measures it."""
    generator = torch.Generator().manual_seed(0)

    def random() -> Tiled:
        codes = (16 * torch.rand(16, 4096, generator=generator)).to(CODE)
        return Tiled(codes, torch.ones(16, 4096 // TILE), (1, TILE))

    a, b = random(), random()
    exact = a.codes.double() @ b.codes.double().t()

    def off(promote_every: int | None) -> float:
        return float(((hopper_product(a, b, promote_every) - exact) / exact).abs().max())

    assert off(None) > 2e-3 and off(TILE) < 2e-4


@pytest.mark.parametrize("recompute", [False, True])
def test_what_is_kept_for_the_backward_is_fp8(recompute: bool) -> None:
    """Once, where several products read it; of a SwiGLU its output only where not recomputed."""
    kept: list[Tensor] = []
    x = torch.randn(256, 512).bfloat16().requires_grad_()
    weight, ops, tape = nn.Parameter(torch.randn(512, 512).bfloat16()), Fp8Ops(), Tape()
    down, groups = (
        nn.Parameter(torch.randn(1, 512, 256).bfloat16()),
        Groups.of(torch.tensor([256]), [256]),
    )
    with torch.autograd.graph.saved_tensors_hooks(keep(kept), lambda tensor: tensor):
        operand = ops.operand(tape, x, recompute=False)
        ops.linear(operand, weight)
        ops.linear(operand, weight)
        ops.weighted_swiglu_linear(x, torch.ones(256), down, groups, recompute)
    large = {tensor.data_ptr(): tensor for tensor in kept if tensor.numel() >= 256 * 256}
    assert all(tensor.dtype == CODE for tensor in large.values())
    widths = sorted(tensor.shape[1] for tensor in large.values())
    assert widths == [256] * (not recompute) + [512, 512]


class ToItself:
    """A collective of one rank."""

    copies = True

    def start(self, *tensors: Tensor) -> Any:
        return SimpleNamespace(results=lambda: tensors)

    def reversed(self) -> Collective:
        return self


def test_tokens_that_come_in_fp8_stay_so_in_experts() -> None:
    """From arrival to their products: nothing as wide as the tokens is kept for the backward."""
    tokens, width, ops, wire = 64, 256, Fp8Ops(), Fp8Wire()
    experts = GroupedExperts(ops, (0, 1), width, 128, recompute_swiglu=True)
    choices = torch.arange(tokens).unsqueeze(1) % 2
    kept: list[Tensor] = []
    weights = torch.ones(tokens, 1, requires_grad=True)
    sent = wire.tokens(ToItself()).start(torch.randn(tokens, width), weights, choices)
    x, *_ = wire.read(sent.results())
    assert isinstance(x, Rounded) and x.codes.dtype == CODE
    assert x.carrier.untyped_storage().nbytes() == x.carrier.element_size()
    received = Received(x, weights, choices, Groups.of(torch.tensor([32, 32]), [32, 32]))
    with torch.autograd.graph.saved_tensors_hooks(keep(kept), lambda tensor: tensor):
        experts(*received.parts())
    large = [tensor for tensor in kept if tensor.numel() >= tokens * 128]
    assert large and all(tensor.dtype == CODE for tensor in large)


def keep(kept: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    return pack


def test_what_waits_for_a_weight_gradient_is_fp8() -> None:
    """Of the gradient, too: nothing else holds it until W."""
    x = torch.randn(256, 256).bfloat16().requires_grad_()
    weight, ops = nn.Parameter(torch.randn(256, 256).bfloat16()), Fp8Ops()
    grad = torch.randn(256, 256).bfloat16()
    ops.linear(x, weight).backward(grad)
    gone = weakref.ref(grad)
    del grad
    assert gone() is None and len(ops.deferred) == 1


@pytest.mark.parametrize("recompute", [False, True])
def test_swiglu_and_its_product_are_as_near_as_fp8_allows(recompute: bool) -> None:
    """Recomputed, the output comes from the rounded input, in the weight gradient alone."""
    generator = torch.Generator().manual_seed(2)
    numbers = []
    for ops in (Ops(), Fp8Ops()):
        generator.manual_seed(2)
        gate_up = torch.randn(300, 260, generator=generator).requires_grad_()
        weight = torch.rand(300, generator=generator).requires_grad_()
        down = nn.Parameter(torch.randn(2, 140, 130, generator=generator) * 0.1)
        set_gradient(down, torch.zeros(down.shape))
        groups = Groups.of(torch.tensor([200, 100]), [200, 100])
        y = ops.weighted_swiglu_linear(gate_up, weight, down, groups, recompute)
        y.backward(torch.randn(300, 140, generator=generator) * 1e-4)
        ops.deferred.drain()
        numbers.append([y.detach(), gate_up.grad, weight.grad, down.grad])
    for wanted, found in zip(*numbers):
        assert 0.01 < float((found - wanted).norm() / wanted.norm()) < 0.06


def test_attention_reads_what_its_output_projection_has_rounded() -> None:
    """One memory, in E5M6: the weight gradient reads it, attention's backward, too."""
    x = torch.randn(64, 256)
    exact = x.clone()
    Fp8Ops().attention_output(x, nn.Parameter(torch.randn(8, 256)))
    assert torch.equal(x, round_e5m6(exact)) and not torch.equal(x, exact)


def test_weights_are_quantised_once_until_they_change() -> None:
    ops, weight = Fp8Ops(), nn.Parameter(torch.ones(4, 4))
    first = ops.linear(torch.ones(1, 4), weight)
    with torch.no_grad():
        weight.mul_(2)
    assert torch.equal(ops.linear(torch.ones(1, 4), weight), first)
    ops.weights_changed()
    assert torch.equal(ops.linear(torch.ones(1, 4), weight), 2 * first)


# ---- layouts ----


@pytest.mark.parametrize(
    ("schedule", "mesh"), [("dualpipe", (2, 1, 1)), ("dualpipev", (1, 1, 2)), ("zbv", (1, 2, 1))]
)
def test_any_layout_gives_the_numbers_of_one_process(
    schedule: str, mesh: tuple[int, int, int]
) -> None:
    """With the same micro-batches exactly, unless experts have ranks of their own: then the rows
    that share a tile of their weight gradients are others, and what follows is as near as fp8 is.
    """
    case = Case(schedule, mesh, 1, recompute=True, overlap=True, linear="fp8")
    for result, one in in_both_layouts(case):
        first, second = zip(result["steps"], one["steps"])
        assert first[0].loss == pytest.approx(first[1].loss, rel=1e-10)
        if mesh[1] > 1:
            assert first[0].gradient_norm == pytest.approx(first[1].gradient_norm, rel=0.01)
            assert second[0].loss == pytest.approx(second[1].loss, rel=0.01)
        else:
            require_equal_gradients(result, one)


@pytest.mark.parametrize(
    ("mesh", "recompute", "by_node"), [((2, 2, 1), False, False), ((1, 4, 1), True, True)]
)
def test_dispatch_in_fp8_is_the_same_rounding_in_any_layout(
    mesh: tuple[int, int, int], recompute: bool, by_node: bool
) -> None:
    """Products in float64: what one process rounds, where nothing travels, is all that differs."""
    schedule = "dualpipe" if mesh[0] > 1 else "1f1b"
    case = Case(schedule, mesh, 1, recompute, True, by_node=by_node, dispatch_dtype="fp8")
    for result, one in in_both_layouts(case):
        for step, alone in zip(result["steps"], one["steps"]):
            assert step.loss == pytest.approx(alone.loss, rel=1e-10)
        require_equal_gradients(result, one)


def in_both_layouts(case: Case) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The results of each rank, and of one process."""
    pipeline, expert, expert_data = case.mesh
    micro_batches = case.config().pipeline.micro_batches * expert * expert_data
    alone = replace(
        case, schedule="1f1b", mesh=(1, 1, 1), micro_batches=micro_batches, by_node=False
    )
    ((one,),) = run_world(1, run_cases, [alone])
    for (result,) in run_world(pipeline * expert * expert_data, run_cases, [case]):
        yield result, one


def require_equal_gradients(result: dict[str, Any], one: dict[str, Any]) -> None:
    for name, gradient in result["gradients"].items():
        np.testing.assert_allclose(gradient, one["gradients"][name], rtol=0, atol=1e-10)

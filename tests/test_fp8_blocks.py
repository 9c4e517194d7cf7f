"""fp8 blocks: the values, and that a checkpoint in fp8 goes through float32 without a bit lost."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parallel.ops.fp8.tiles import blocks
from parallel.ops.fp8.weights import QuantisedWeights
from tests.synthetic_checkpoint import TOY, tensors_of
from trainer.checkpoint.hf.encode import encode
from trainer.checkpoint.hf.fp8_blocks import dequantise, is_block_quantised, quantise, scale_shape
from trainer.errors import CheckpointError

FP8 = torch.float8_e4m3fn
SIZES = st.integers(1, 300)


def same(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> bool:
    """Bit for bit: -0.0 is not 0.0 here."""
    (codes, scales), (other_codes, other_scales) = first, second
    return torch.equal(codes.view(torch.uint8), other_codes.view(torch.uint8)) and torch.equal(
        scales.view(torch.int32), other_scales.view(torch.int32)
    )


def again(codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    return quantise(dequantise(codes, scales, torch.float32))


@given(SIZES, SIZES, st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_each_block_is_scaled_by_its_largest_value(rows: int, columns: int, seed: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02
    codes, scales = quantise(weight)
    assert codes.dtype == FP8 and scales.dtype == torch.float32
    assert tuple(scales.shape) == (math.ceil(rows / 128), math.ceil(columns / 128))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        values = dequantise(codes, scales, dtype)
        for row in range(scales.shape[0]):
            for column in range(scales.shape[1]):
                block = slice(128 * row, 128 * row + 128), slice(128 * column, 128 * column + 128)
                scale = weight[block].abs().max() / 448
                assert scales[row, column] == max(scale, torch.tensor(1e-4) / 448)
                expected_codes = (weight[block] / scales[row, column]).to(FP8)
                assert same((codes[block], scale), (expected_codes, scale))
                expected = (expected_codes.float() * scales[row, column]).to(dtype)
                assert torch.equal(values[block], expected)


@given(SIZES, SIZES.filter(lambda size: size % 128 != 1), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_any_codes_and_scales_come_back_from_float32(rows: int, columns: int, seed: int) -> None:
    """Any code, subnormal and negative zero too, and any scale."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, columns), generator=generator, dtype=torch.uint8)
    codes.masked_fill_((codes & 127) == 127, 0)
    codes[:, ::128] = 126  # each block has 448 and
    codes[:, 1::128] = 0x38  # 1, as blocks of many values all but surely have
    scales = torch.empty(scale_shape((rows, columns))).uniform_(-20, 60, generator=generator).exp2()
    assert same(again(codes.view(FP8), scales), (codes.view(FP8), scales))


def test_every_kind_of_scale_comes_back() -> None:
    """Scales with mantissas all over [1, 2), and their neighbours at its ends and at 8/7, where the
    product with 448 changes its exponent."""
    ends = torch.tensor([[1.0], [8 / 7], [2.0]]).view(torch.int32) + torch.arange(-64, 64).int()
    wanted = torch.cat([ends.flatten().view(torch.float32), torch.linspace(1, 2, 4001)])

    def one_column(scales: Tensor, *values: int) -> tuple[Tensor, Tensor]:
        codes = torch.zeros(len(values), 128 * len(scales))
        codes[:, ::128] = torch.tensor(values).float()[:, None]
        return codes.to(FP8), scales[None]

    # From any float32 amax, whatever else is in the block.
    made = one_column(wanted * 448 / 448, 448)
    assert same(again(*made), made)
    # Any float32 at all, where a power of two tells; amax / 448 alone is often another.
    told = one_column(wanted, -448, 2)
    assert same(again(*told), told)
    assert bool(((wanted * 448) / 448 != wanted).any())


@given(st.lists(st.floats(-14, 3), min_size=1, max_size=3), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_small_and_empty_blocks_come_back(exponents: list[float], seed: int) -> None:
    """Also where the largest code is less than 448 because the maximum was clamped."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10.0 ** torch.tensor([*exponents, -math.inf])
    weight = torch.randn(20, 128 * len(sizes), generator=generator)
    weight *= sizes.repeat_interleave(128)
    made = quantise(weight)
    assert bool((made[1] >= torch.tensor(1e-4) / 448).all()) and same(again(*made), made)


def test_the_largest_values_saturate_and_nothing_else_is_accepted() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(128, 128 * 200, generator=generator)
    assert bool(torch.isfinite(dequantise(*quantise(weight), torch.float32)).all())
    for bad in (math.nan, math.inf, -math.inf):
        weight[77, 3000] = bad
        with pytest.raises(CheckpointError, match="not finite"):
            quantise(weight)


def test_a_part_of_a_larger_tensor_is_taken_as_it_is() -> None:
    weight = torch.randn(256, 384)
    assert same(quantise(weight[100:200, 100:300]), quantise(weight[100:200, 100:300].clone()))
    assert same(quantise(weight.T), quantise(weight.T.contiguous()))


def test_the_matrices_that_are_released_in_fp8() -> None:
    for name, _, dtype in tensors_of(TOY):
        assert is_block_quantised(name) == (dtype == FP8), name
    assert is_block_quantised("model.layers.3.self_attn.q_proj.weight")  # V2-Lite
    assert not is_block_quantised("model.layers.3.self_attn.q_a_proj.weight_scale_inv")


@given(SIZES, SIZES, st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_an_export_holds_what_training_multiplied_with(inner: int, width: int, seed: int) -> None:
    """A bfloat16 weight, and the joined gate and up of an expert whose halves are whole blocks.
    Trained again from the file, in bfloat16, it has the same codes, and scales as near as that."""
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(inner, width, generator=generator) * 0.02).bfloat16()
    joined = (torch.randn(1, 256, width, generator=generator) * 0.02).bfloat16()
    trained, name = QuantisedWeights(), "model.layers.3.mlp.experts.0.gate_proj.weight"
    halves = zip(joined[0].chunk(2), trained.values(joined)[0].chunk(2))
    for matrix, multiplied_with in [(weight, trained.values(weight)), *halves]:
        codes, scales = encode(name, matrix, "fp8").values()
        values = dequantise(codes, scales, torch.float32)
        assert torch.equal(values, multiplied_with)
        loaded = blocks(dequantise(codes, scales, torch.bfloat16))
        assert torch.equal(loaded.codes.view(torch.uint8), codes.view(torch.uint8))
        torch.testing.assert_close(loaded.scales, scales, rtol=2**-8, atol=0)

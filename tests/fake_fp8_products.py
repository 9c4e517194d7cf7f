"""torch's block-scaled product and DeepGEMM's grouped one, as their sources describe them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import ScalingType

from parallel.ops.fp8.tiles import CODE, TILE, Tiled


def scaled_mm(
    a: Tensor, b: Tensor, scale_a: Tensor, recipe_a: Any, scale_b: Tensor, recipe_b: Any, *,
    output_dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """torch.nn.functional.scaled_mm, for activations by a weight, on Hopper."""
    assert (recipe_a, recipe_b) == (ScalingType.BlockWise1x128, ScalingType.BlockWise128x128)
    (rows, width), outputs = a.shape, b.shape[1]
    assert a.dtype == b.dtype == CODE and a.stride() == (width, 1) and b.stride() == (1, width)
    assert width % 16 == 0 and outputs % 16 == 0
    steps = -(-width // TILE)
    assert scale_a.shape == (rows, steps) and scale_a.stride() == (1, rows)
    filled = -(-steps // 4) * 4
    assert scale_b.shape == (filled, -(-outputs // TILE)) and scale_b.stride() == (1, filled)
    assert scale_a.dtype == scale_b.dtype == torch.float32
    weight = Tiled(b.t(), scale_b[:steps].t(), (TILE, TILE)).values()
    return (Tiled.along_rows(a, scale_a).values() @ weight.t()).to(output_dtype)


class DeepGemm:
    """Of the package what is called. Rows of filling are garbage."""

    @staticmethod
    def m_grouped_fp8_gemm_nt_contiguous(
        a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], d: Tensor, m_indices: Tensor, *,
        disable_ue8m0_cast: bool,
    ) -> None:  # fmt: skip
        assert disable_ue8m0_cast and m_indices.dtype == torch.int32
        (codes, scales), (weights, weight_scales) = a, b
        rows, width = codes.shape
        assert rows % TILE == width % TILE == 0 and codes.is_contiguous()
        assert weights.is_contiguous() and weight_scales.is_contiguous() and d.is_contiguous()
        assert d.dtype == torch.bfloat16
        d.fill_(float("nan"))
        for start in range(0, rows, TILE):
            part = slice(start, start + TILE)
            numbers = set(m_indices[part].tolist()) - {-1}
            assert len(numbers) <= 1, "rows of two experts in one tile"
            for number in numbers:
                weight = Tiled(weights[number], weight_scales[number], (TILE, TILE)).values()
                x = Tiled.along_rows(codes[part], scales[part]).values()
                d[part] = (x @ weight.t()).bfloat16()

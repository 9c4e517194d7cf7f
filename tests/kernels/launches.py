"""Every kernel once, with shapes that divide as those of a model do."""

from __future__ import annotations

import torch

from parallel.ops.fp8.tiles import CODE
from parallel.ops.groups import Groups
from parallel.ops.triton.grouped import add_grouped_product
from parallel.ops.triton.quantise import quantise_columns, quantise_rows
from parallel.ops.triton.rotary import join_rotated, sum_turned_back
from parallel.ops.triton.row_tiles import RowTiles
from parallel.ops.triton.scaled_products import add_scaled_product, scaled_product
from parallel.ops.triton.softmax import gradient_, loss_and_normaliser
from parallel.ops.triton.sum_rows import sum_rows
from parallel.ops.triton.swiglu import (
    weighted_swiglu,
    weighted_swiglu_backward,
    weighted_swiglu_in_fp8,
)

ROWS, OUTPUTS, INPUTS = 512, 256, 384
SIZES = (256, 0, 200, 56)


def launch_all() -> None:
    products()
    between_products()


def products() -> None:
    x = torch.zeros(ROWS, INPUTS).bfloat16()
    grad = torch.zeros(ROWS, OUTPUTS).bfloat16()
    groups = Groups.of(torch.tensor(SIZES), SIZES)
    tiles, into = RowTiles.of(groups), torch.zeros(len(SIZES), OUTPUTS, INPUTS)
    rows = quantise_rows(x)
    scales = torch.zeros(len(SIZES), OUTPUTS // 128, INPUTS // 128)
    scaled_product(rows, into.to(CODE), scales, tiles, torch.bfloat16)
    add_scaled_product(into, quantise_columns(grad, tiles), quantise_columns(rows, tiles))
    add_grouped_product(into, grad, x, groups)


def between_products() -> None:
    gate_up, grad = torch.zeros(ROWS, 2 * OUTPUTS).bfloat16(), torch.zeros(ROWS, OUTPUTS).bfloat16()
    weight, number = torch.zeros(ROWS), torch.zeros(ROWS, dtype=torch.int64)
    weighted_swiglu(gate_up, weight)
    weighted_swiglu_in_fp8(gate_up, weight)
    weighted_swiglu_in_fp8(quantise_rows(gate_up), weight)
    weighted_swiglu_backward(grad, gate_up, weight)
    weighted_swiglu_backward(grad, quantise_rows(gate_up), weight)
    sum_rows(grad, number, ROWS)
    logits = torch.zeros(ROWS, 129280).bfloat16()
    _, normaliser = loss_and_normaliser(logits, number)
    gradient_(logits, normaliser, number)
    heads, angles = torch.zeros(ROWS, 128, 192).bfloat16(), torch.zeros(ROWS, 32)
    still, turned = heads.split([128, 64], -1)
    join_rotated(still, turned, angles, angles, backward=False)
    join_rotated(still, turned, angles, angles, backward=True)
    sum_turned_back(turned, angles, angles)

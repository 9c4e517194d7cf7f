"""Ops: every product of a model with its weights, every other kernel, and every weight it makes.

One object stands between the layers and the numbers: it knows the types of the weights, which
kernel multiplies with them, and where their gradients go. Layers are given one when they are made
and name no type, no kernel and no queue; another precision is another Ops.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from parallel.ops.attention import AttentionKernel, causal_attention
from parallel.ops.cross_entropy import cross_entropy
from parallel.ops.embedding import embedding
from parallel.ops.fp8.rounded import Rounded, read, rows_of
from parallel.ops.grouped import GroupedProduct, grouped_linear
from parallel.ops.groups import Groups
from parallel.ops.kernels import Kernels
from parallel.ops.linear import Product, linear
from parallel.ops.norm import rms_norm
from parallel.ops.precision import Precision
from parallel.ops.sum_rows import sum_rows, take_rows
from parallel.ops.swiglu_linear import swiglu_linear
from parallel.tape.tape import Tape
from parallel.tape.weight_gradients import WeightGradients

Operand: TypeAlias = Tensor | Rounded
"""What products with weights read: a tensor, or what `operand` of the same Ops made of one."""


@dataclass(frozen=True)
class Ops:
    """precision: of the weights that it makes. deferred: where the backward of a product leaves
    its weight gradient; the tape of the micro-batch takes it from there, region by region.
    kernels: what is computed between products. weights_on: where it makes weights, such as on meta,
    without memory; torch's own device where not given. attention_kernel: torch's choice where not
    given."""

    precision: Precision = field(default_factory=Precision)
    deferred: WeightGradients = field(default_factory=WeightGradients)
    kernels: Kernels = field(default_factory=Kernels)
    weights_on: torch.device | None = None
    attention_kernel: AttentionKernel | None = None

    def parameter(self, *shape: int) -> nn.Parameter:
        """A weight, not set."""
        empty = torch.empty(shape, dtype=self.precision.parameters, device=self.weights_on)
        return nn.Parameter(empty)

    def weights_changed(self) -> None:
        """What was made of weights, other than they are, has to be made again."""

    def accurate(self, x: Tensor) -> Tensor:
        """Numbers that must not lose digits: float32 or wider."""
        return x.to(self.precision.accurate)

    def operand(self, tape: Tape, x_TC: Tensor, recompute: bool) -> Operand:
        """x, for several products to read. recompute: what is made of it, if anything is."""
        return x_TC

    def linear(self, x: Operand, weight: Tensor) -> Tensor:
        """x [..., I] @ weight [O, I] transposed -> [..., O], in the type of x."""
        assert isinstance(x, Tensor)  # as `operand` gives it
        return linear(x, weight, self.deferred)

    def attention_output(self, x_TI: Tensor, weight: Tensor) -> Tensor:
        """The same of attention's result, which attention's own backward reads, too."""
        return self.linear(x_TI, weight)

    def accurate_linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """The same in float32 or wider, whatever the types of x and the weight."""
        return linear(x, weight, self.deferred, self.precision.accurate)

    def embedding(self, tokens: Tensor, weight: Tensor) -> Tensor:
        """Rows of weight [V, D] for integer tokens [...] -> [..., D]."""
        return embedding(tokens, weight, self.deferred)

    def grouped_linear(self, x: Operand, weight_EOI: Tensor, groups: Groups) -> Tensor:
        """Rows x weight of their expert, transposed: [P, I], [E, O, I] -> [P, O]. groups: the rows
        of each expert, P in all. Rows that have come in fp8 are read."""
        x_PI = read(x) if isinstance(x, Rounded) else x
        return grouped_linear(x_PI, self._grouped(weight_EOI, groups))

    def _grouped(self, weight_EOI: Tensor, groups: Groups) -> GroupedProduct:
        add = self.kernels.add_grouped_product
        return GroupedProduct(weight_EOI, groups, self.deferred, add)

    def cross_entropy(self, x_TD: Tensor, weight_VD: Tensor, target_T: Tensor) -> Tensor:
        """Cross-entropy of softmax(x @ weight transposed), summed over the tokens whose target is
        not -1, in nats; float32 or wider."""
        return cross_entropy(x_TD, weight_VD, target_T, self.deferred, self.kernels.softmax)

    def take_rows(self, x: Operand, row_P: Tensor) -> Operand:
        """The rows with these numbers (int64), [P, D]; in fp8, codes and scales as they are."""
        if isinstance(x, Rounded):
            return rows_of(x, row_P, self.kernels.add_rows)
        return take_rows(x, row_P, self.kernels.add_rows)

    def sum_rows(self, x_PD: Tensor, row_P: Tensor, rows: int) -> Tensor:
        """y [rows, D] with y[r] the sum of the x whose number in row_P (int64) is r."""
        return sum_rows(x_PD, row_P, rows, self.kernels.add_rows)

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        document_BS: Tensor | None = None,
    ) -> Tensor:
        """Causal attention, [B, H, S, N] each -> [B, H, S, V], within documents where their numbers
        are given; softmax in float32 or wider."""
        return causal_attention(query, key, value, scale, self.attention_kernel, document_BS)

    def rms_norm(self, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """x [..., D] / rms(x) x weight, computed in float32 or wider, in the type of x."""
        return rms_norm(x, weight_D, eps, self.kernels.rms_norm)

    def swiglu_linear(
        self, gate_TI: Tensor, up_TI: Tensor, weight: Tensor, recompute: bool
    ) -> Tensor:
        """silu(gate) x up, of one shape, then that @ weight [O, I] transposed: [T, O]. recompute:
        what is between."""
        product = Product(weight, self.deferred)
        return swiglu_linear(self.kernels.swiglu, product, recompute, gate_TI, up_TI)

    def weighted_swiglu_linear(
        self,
        gate_up_P2I: Tensor,
        weight_P: Tensor,
        weight_EOI: Tensor,
        groups: Groups,
        recompute: bool,
    ) -> Tensor:
        """silu(gate) x up x weight of the row, then that x matrix of the row's expert, transposed:
        [P, O], in the type of gate_up, whose halves are gate and up. The weight of the row may be
        of a wider type, in which its gradient is summed. recompute: what is between."""
        product = self._grouped(weight_EOI, groups)
        kernel = self.kernels.weighted_swiglu
        return swiglu_linear(kernel, product, recompute, gate_up_P2I, weight_P)


class Linear(nn.Module):
    """A weight [outputs, inputs] under the name that the released checkpoints give it
    (`NAME.weight`), and the product with it."""

    def __init__(self, ops: Ops, inputs: int, outputs: int) -> None:
        super().__init__()
        self.ops = ops
        self.weight = ops.parameter(outputs, inputs)

    def forward(self, x: Operand) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return self.ops.linear(x, self.weight)


class AttentionOutput(nn.Module):
    """The projection of attention's result, as Linear."""

    def __init__(self, ops: Ops, inputs: int, outputs: int) -> None:
        super().__init__()
        self.ops = ops
        self.weight = ops.parameter(outputs, inputs)

    def forward(self, x_TI: Tensor) -> Tensor:
        """[T, inputs] -> [T, outputs]."""
        return self.ops.attention_output(x_TI, self.weight)


class Embedding(nn.Module):
    """A table [rows, width], `NAME.weight`, and its look-up."""

    def __init__(self, ops: Ops, rows: int, width: int) -> None:
        super().__init__()
        self.ops = ops
        self.weight = ops.parameter(rows, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Integers [...] -> [..., width]."""
        return self.ops.embedding(tokens, self.weight)

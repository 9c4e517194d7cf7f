"""Layers of a model for passes over few tokens: the same parameters, fewer and smaller kernels.

At a token or a few, a kernel's start costs as much as its work, and reading the weights more than
multiplying with them. So products of one input are one product, nothing is computed that only
training reads, and of the experts only those are touched that a token has chosen.

Shapes: T tokens, D width, I inner width, K experts per token, P (token, expert) pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from parallel.expert import router
from parallel.ops.precision import accurate_type
from parallel.ops.swiglu import WEIGHTED_SWIGLU
from parallel.tape.passes import Pass
from parallel.tape.tape import Tape
from trainer.generate.cached_attention import CachedMLA
from trainer.generate.inference_ops import InferenceOps
from trainer.model.layer import Layer
from trainer.model.mlp import MLP
from trainer.model.moe import MoE
from trainer.model.norm import RMSNorm
from trainer.model.places import Places


class FewTokenNorm(nn.Module):
    """RMSNorm as x / hypot(|x|, sqrt(eps D)) x (weight sqrt(D))."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.weight, self._root = norm.weight, math.sqrt(len(norm.weight))
        narrow = self.weight.dtype
        wide = accurate_type(narrow)
        self._wide = None if wide is narrow else wide
        self._eps = torch.tensor(math.sqrt(norm.eps) * self._root, dtype=wide)

    def prepare(self) -> None:
        """Take the weight as it is now."""
        self._scaled = self.weight.data.to(self._eps.dtype) * self._root

    def forward(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, 2, -1, True, dtype=self._wide).hypot_(self._eps)
        normed = (x / length).mul_(self._scaled)
        return normed if self._wide is None else normed.to(x.dtype)


class FewTokenMLP(nn.Module):
    """SwiGLU with gate and up projection in one product."""

    def __init__(self, mlp: MLP, ops: InferenceOps) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self._ops, (inner, dim) = ops, self.gate_proj.weight.shape
        self._gate_up_FD, self._down_DI = (
            ops.parameter(2 * inner, dim).data,
            self.down_proj.weight.data,
        )
        for linear, weight in zip((self.gate_proj, self.up_proj), self._gate_up_FD.chunk(2)):
            linear.weight = nn.Parameter(weight, requires_grad=False)

    def forward(
        self, tape: Tape, x_TD: Tensor, n_TD: Tensor, places: Places | None = None
    ) -> Pass[Tensor]:
        yield from ()
        return self.add_to(x_TD, n_TD)

    def add_to(self, x_TD: Tensor, n_TD: Tensor) -> Tensor:
        """x, the residual stream, and this MLP of n, [T, D] each -> [T, D]."""
        gate_TI, up_TI = self._ops.linear(n_TD, self._gate_up_FD).chunk(2, -1)
        return self._ops.add_linear(x_TD, silu(gate_TI).mul_(up_TI), self._down_DI)


class FewTokenMoE(nn.Module):
    """Shared experts on every token plus the chosen ones, each in a product of its own."""

    def __init__(self, moe: MoE, ops: InferenceOps) -> None:
        super().__init__()
        self.options, self.gate, self.experts = moe.options, moe.gate, moe.experts
        self.shared_experts, self._ops = cast(FewTokenMLP | None, moe.shared_experts), ops
        self._logits, self._bias_E = self.gate.forward, self.gate.e_score_correction_bias.data
        # By expert: [F, D] with F = 2I, and [D, I].
        self._gate_up_FD = self.experts.gate_up_proj.data.unbind()
        self._down_DI = self.experts.down_proj.data.unbind()

    def forward(
        self, tape: Tape, x_TD: Tensor, n_TD: Tensor, places: Places | None = None
    ) -> Pass[Tensor]:
        yield from ()
        return self.add_to(x_TD, n_TD)

    def add_to(self, x_TD: Tensor, n_TD: Tensor) -> Tensor:
        """x, the residual stream, and the experts of n, [T, D] each -> [T, D]."""
        scores_TE = router.scores(self._logits(n_TD), self.options)
        weights_TK, experts_TK = router.choose(scores_TE, self._bias_E, self.options)
        if self.shared_experts is not None:
            x_TD = self.shared_experts.add_to(x_TD, n_TD)
        add = self._add_of_one if len(n_TD) == 1 else self._add_of_each
        return add(x_TD, n_TD, weights_TK, experts_TK)

    def _add_of_one(
        self, x_1D: Tensor, n_1D: Tensor, weights_1K: Tensor, experts_1K: Tensor
    ) -> Tensor:
        """x plus the experts of one token, for which nothing has to be sorted."""
        [chosen], ops = experts_1K.tolist(), self._ops
        gate_up = [ops.small_linear(n_1D, self._gate_up_FD[expert]) for expert in chosen]
        (act_KI,) = WEIGHTED_SWIGLU.forward(torch.cat(gate_up), weights_1K[0])
        for expert, act_1I in zip(chosen, act_KI.split_with_sizes([1] * len(chosen))):
            x_1D = ops.add_linear(x_1D, act_1I, self._down_DI[expert])
        return x_1D

    def _add_of_each(
        self, x_TD: Tensor, n_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor
    ) -> Tensor:
        """x plus the experts of several tokens, in the order of the experts."""
        expert_P, order_P = experts_TK.view(-1).sort(stable=True)
        chosen, rows = _runs(expert_P.tolist())
        token_P = order_P // experts_TK.shape[1]
        n_PD = n_TD.index_select(0, token_P)
        gate_up_PF = _each(n_PD, rows, self._gate_up_FD, chosen, self._ops)
        weight_P = weights_TK.view(-1).index_select(0, order_P)
        (act_PI,) = WEIGHTED_SWIGLU.forward(gate_up_PF, weight_P)
        y_PD = _each(act_PI, rows, self._down_DI, chosen, self._ops)
        return x_TD.index_add(0, token_P, y_PD)


class FewTokenLayer(nn.Module):
    """Attention and MLP, each added to the residual stream by its last product."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, cast(nn.Module, layer.mlp)
        assert isinstance(attention, CachedMLA) and isinstance(mlp, FewTokenMLP | FewTokenMoE)
        self.input_layernorm, self.self_attn = layer.input_layernorm, attention
        self.post_attention_layernorm, self.mlp = layer.post_attention_layernorm, mlp

    def forward(self, tape: Tape, x_TD: Tensor, places: Places | None = None) -> Pass[Tensor]:
        yield from ()
        x_TD = self.self_attn.add_to(x_TD, self.input_layernorm.forward(x_TD))
        return self.mlp.add_to(x_TD, self.post_attention_layernorm.forward(x_TD))


def _runs(experts: list[int]) -> tuple[list[int], list[int]]:
    """The different ones of sorted numbers, and how often each comes."""
    counts: dict[int, int] = {}
    for expert in experts:
        counts[expert] = counts.get(expert, 0) + 1
    return list(counts), list(counts.values())


def _each(
    x_PI: Tensor, rows: list[int], weights: Sequence[Tensor], chosen: list[int], ops: InferenceOps
) -> Tensor:
    """Rows of x times the weight [O, I] of their expert, [P, O]; rows: of each that is chosen."""
    pieces = zip(x_PI.split_with_sizes(rows), chosen)
    return torch.cat([ops.small_linear(x, weights[expert]) for x, expert in pieces])


def for_few_tokens(module: nn.Module, ops: InferenceOps) -> None:
    """Let the layers in `module`, whose weights are not set, be those of this file."""
    for name, child in module.named_children():
        for_few_tokens(child, ops)
        if isinstance(child, RMSNorm):
            setattr(module, name, FewTokenNorm(child))
        elif isinstance(child, MLP):
            setattr(module, name, FewTokenMLP(child, ops))
        elif isinstance(child, MoE):
            setattr(module, name, FewTokenMoE(child, ops))
        elif type(child) is Layer:  # an MTP module is one, and more
            setattr(module, name, FewTokenLayer(child))

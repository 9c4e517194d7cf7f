"""Layers of a model for passes over few tokens: the same parameters, fewer and smaller kernels.

At a token or a few, a kernel's start costs as much as its work, and reading the weights more than
multiplying with them. So products of one input are one product, nothing is computed that only
training reads, and of the experts only those are touched that a token has chosen.

Shapes: T tokens, D width, I inner width, K experts per token, P (token, expert) pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from parallel.expert import router
from parallel.ops.ops import Ops
from parallel.ops.precision import accurate_type
from parallel.tape.passes import Pass
from parallel.tape.tape import Tape
from trainer.model.mlp import MLP
from trainer.model.moe import MoE
from trainer.model.norm import RMSNorm

FEW = 64
"""Tokens. More of them, as of a prompt, go through the experts as in training."""


class FewTokenNorm(nn.Module):
    """RMSNorm as x / hypot(|x|, sqrt(eps D)) x weight sqrt(D), which is four kernels."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.weight = norm.weight
        self._weight, self._root = norm.weight.data, math.sqrt(len(norm.weight))
        wide = accurate_type(self._weight.dtype)
        self._zero = self._weight.new_zeros(())
        self._eps = torch.tensor(math.sqrt(norm.eps) * self._root, dtype=wide)

    def forward(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, 2, -1, True, dtype=self._eps.dtype).hypot_(self._eps)
        return torch.addcmul(self._zero, x / length, self._weight, value=self._root)


class FewTokenMLP(nn.Module):
    """SwiGLU with gate and up projection in one product."""

    def __init__(self, mlp: MLP, ops: Ops) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self._ops, (inner, dim) = ops, self.gate_proj.weight.shape
        self._gate_up_FD, self._down_DI = (
            ops.parameter(2 * inner, dim).data,
            self.down_proj.weight.data,
        )
        for linear, weight in zip((self.gate_proj, self.up_proj), self._gate_up_FD.chunk(2)):
            linear.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, tape: Tape, x_TD: Tensor, n_TD: Tensor) -> Pass[Tensor]:
        """x, the residual stream, and this MLP of n, [T, D] each -> [T, D]."""
        yield from ()
        return x_TD + self.mix(n_TD)

    def mix(self, n_TD: Tensor) -> Tensor:
        gate_TI, up_TI = self._ops.linear(n_TD, self._gate_up_FD).chunk(2, -1)
        return self._ops.linear(silu(gate_TI).mul_(up_TI), self._down_DI)


class FewTokenMoE(nn.Module):
    """Shared experts on every token plus the chosen ones, each in a product of its own."""

    def __init__(self, moe: MoE, ops: Ops) -> None:
        super().__init__()
        self.options, self.gate, self.experts = moe.options, moe.gate, moe.experts
        self.shared_experts: FewTokenMLP | None = None
        if moe.shared_experts is not None:
            self.shared_experts = FewTokenMLP(moe.shared_experts, ops)
        self._ops = ops
        self._logits, self._bias_E = self.gate.forward, self.gate.e_score_correction_bias.data
        # By expert: [F, D] with F = 2I, and [D, I].
        self._gate_up_FD = self.experts.gate_up_proj.data.unbind()
        self._down_DI = self.experts.down_proj.data.unbind()

    def forward(self, tape: Tape, x_TD: Tensor, n_TD: Tensor) -> Pass[Tensor]:
        """x, the residual stream, and the experts of n, [T, D] each -> [T, D]."""
        yield from ()
        scores_TE = router.scores(self._logits(n_TD), self.options)
        weights_TK, experts_TK = router.choose(scores_TE, self._bias_E, self.options)
        if self.shared_experts is not None:
            x_TD = x_TD + self.shared_experts.mix(n_TD)
        if len(n_TD) == 1:
            return x_TD + self._chosen_by_one(n_TD, weights_TK, experts_TK)
        if len(n_TD) <= FEW:
            return x_TD + self._chosen_by_few(n_TD, weights_TK, experts_TK)
        return x_TD + self.experts.forward(tape, n_TD, weights_TK, experts_TK)

    def _chosen_by_one(self, n_1D: Tensor, weights_1K: Tensor, experts_1K: Tensor) -> Tensor:
        """The experts of one token: nothing has to be sorted."""
        [chosen] = experts_1K.tolist()
        rows = [1] * len(chosen)
        gate_up_KF = _each(n_1D.expand(len(chosen), -1), rows, self._gate_up_FD, chosen, self._ops)
        act_KI = _weighted_swiglu(gate_up_KF, weights_1K.t())
        return _each(act_KI, rows, self._down_DI, chosen, self._ops).sum(0, keepdim=True)

    def _chosen_by_few(self, n_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> Tensor:
        """The experts of several tokens, in the order of the experts."""
        expert_P, order_P = experts_TK.view(-1).sort(stable=True)
        chosen, rows = _runs(expert_P.tolist())
        token_P = order_P // experts_TK.shape[1]
        n_PD = n_TD.index_select(0, token_P)
        gate_up_PF = _each(n_PD, rows, self._gate_up_FD, chosen, self._ops)
        act_PI = _weighted_swiglu(gate_up_PF, weights_TK.view(-1, 1).index_select(0, order_P))
        y_PD = _each(act_PI, rows, self._down_DI, chosen, self._ops)
        return torch.zeros_like(n_TD).index_add_(0, token_P, y_PD)


def _weighted_swiglu(gate_up_PF: Tensor, weight_P1: Tensor) -> Tensor:
    gate_PI, up_PI = gate_up_PF.chunk(2, -1)
    return silu(gate_PI).mul_(up_PI).mul_(weight_P1)


def _runs(experts: list[int]) -> tuple[list[int], list[int]]:
    """The different ones of sorted numbers, and how often each comes."""
    counts: dict[int, int] = {}
    for expert in experts:
        counts[expert] = counts.get(expert, 0) + 1
    return list(counts), list(counts.values())


def _each(
    x_PI: Tensor, rows: list[int], weights: Sequence[Tensor], chosen: list[int], ops: Ops
) -> Tensor:
    """Rows of x times the weight [O, I] of their expert, [P, O]; rows: of each that is chosen."""
    pieces = zip(x_PI.split_with_sizes(rows), chosen)
    return torch.cat([ops.linear(x, weights[expert]) for x, expert in pieces])


def for_few_tokens(part: nn.Module, ops: Ops) -> None:
    """Let the layers of `part`, whose weights are not set, be those of this file."""
    for module in part.modules():
        for name, child in module.named_children():
            if isinstance(child, RMSNorm):
                setattr(module, name, FewTokenNorm(child))
            elif isinstance(child, MoE):
                setattr(module, name, FewTokenMoE(child, ops))
            elif isinstance(child, MLP):
                setattr(module, name, FewTokenMLP(child, ops))

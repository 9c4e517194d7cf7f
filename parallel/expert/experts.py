"""The routed experts of one rank: SwiGLU MLPs, computed as grouped matrix products.

Shapes: N tokens received, K choices per token, P (token, choice) pairs that fall on this rank, E
experts here, D model width, I inner width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parallel.expert.sum_rows import sum_rows
from parallel.ops.ops import Ops
from parallel.tape.tape import Tape


class GroupedExperts(nn.Module):
    """down(silu(gate(x)) x up(x) x routing weight), summed by token over the experts here.

    The routing weight is applied before the down projection, so that what goes back is a plain sum
    over ranks. gate_up_proj [E, 2I, D] holds each expert's gate above its up projection. held: the
    number of each expert in the model, in the order of the first dimension.
    """

    def __init__(
        self, ops: Ops, held: tuple[int, ...], dim: int, inner: int, recompute_swiglu: bool
    ) -> None:
        super().__init__()
        self.ops, self.held = ops, held
        self.gate_up_proj = ops.parameter(len(held), 2 * inner, dim)
        self.down_proj = ops.parameter(len(held), dim, inner)
        self.recompute_swiglu = recompute_swiglu

    def forward(self, tape: Tape, x_ND: Tensor, weights_NK: Tensor, experts_NK: Tensor) -> Tensor:
        """Results by received token, [N, D]; zero for a token with no choice here."""
        x_PD, weight_P, row_P, ends_E = self.sort_by_expert(x_ND, weights_NK, experts_NK)
        gate_up_P2I = self.ops.grouped_linear(x_PD, self.gate_up_proj, ends_E)
        act_PI = tape.compute(
            self.ops.weighted_swiglu, gate_up_P2I, weight_P, recompute=self.recompute_swiglu
        )
        y_PD = self.ops.grouped_linear(act_PI, self.down_proj, ends_E)
        return sum_rows(y_PD, row_P, len(x_ND))

    def sort_by_expert(
        self, x_ND: Tensor, weights_NK: Tensor, experts_NK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One row for each pair, sorted by expert; its routing weight; its token's row [P]; and
        for each expert the row after its last, int32."""
        experts = len(self.down_proj)
        row_P, choice_P = (experts_NK >= 0).nonzero(as_tuple=True)
        expert_P = experts_NK[row_P, choice_P]
        order_P = expert_P.argsort(stable=True)
        row_P, choice_P = row_P[order_P], choice_P[order_P]
        ends_E = torch.bincount(expert_P, minlength=experts).cumsum(0).to(torch.int32)
        return x_ND.index_select(0, row_P), weights_NK[row_P, choice_P], row_P, ends_E

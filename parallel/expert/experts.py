"""The routed experts of one rank: SwiGLU MLPs, computed as grouped matrix products.

Shapes: N tokens received, K choices per token, P (token, choice) pairs that fall on this rank, E
experts here, D model width, I inner width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parallel.expert.sum_rows import sum_rows
from parallel.ops.groups import Groups
from parallel.ops.ops import Ops


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

    def forward(
        self, x_ND: Tensor, weights_NK: Tensor, experts_NK: Tensor, groups: Groups
    ) -> Tensor:
        """Results by received token, [N, D]; zero for a token with no choice here.

        experts_NK: slots of the choices here, -1 for those elsewhere. groups: the pairs of each
        slot.
        """
        x_PD, weight_P, row_P = self.sort_by_expert(x_ND, weights_NK, experts_NK, groups.rows)
        gate_up_P2I = self.ops.grouped_linear(x_PD, self.gate_up_proj, groups)
        y_PD = self.ops.weighted_swiglu_linear(
            gate_up_P2I, weight_P, self.down_proj, groups, self.recompute_swiglu
        )
        return sum_rows(y_PD, row_P, len(x_ND))

    def sort_by_expert(
        self, x_ND: Tensor, weights_NK: Tensor, experts_NK: Tensor, pairs: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One row for each pair, sorted by expert; its routing weight; its token's row [P]."""
        # With the number of pairs given, nonzero does not make the host wait for it.
        row_P, choice_P = torch.nonzero_static(experts_NK >= 0, size=pairs).unbind(1)
        order_P = experts_NK[row_P, choice_P].argsort(stable=True)
        row_P, choice_P = row_P[order_P], choice_P[order_P]
        return x_ND.index_select(0, row_P), weights_NK[row_P, choice_P], row_P

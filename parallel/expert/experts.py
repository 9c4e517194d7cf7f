"""The routed experts of one rank: SwiGLU MLPs, computed as grouped matrix products.

Shapes: N tokens received, K choices per token, P (token, choice) pairs that fall on this rank, E
experts here, D model width, I inner width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parallel.ops.fp8.rounded import Rounded
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

    def forward(self, weights_NK: Tensor, experts_NK: Tensor, groups: Groups, *x: Tensor) -> Tensor:
        """Results by received token, [N, D]; zero for a token with no choice here.

        experts_NK: slots of the choices here, -1 for those elsewhere. groups: the pairs of each
        slot. x: the tokens, [N, D], or the parts of Rounded ones.
        """
        row_P, choice_P = self.sorted_pairs(experts_NK, groups.rows)
        x_PD = self.ops.take_rows(x[0] if len(x) == 1 else Rounded(*x), row_P)
        gate_up_P2I = self.ops.grouped_linear(x_PD, self.gate_up_proj, groups)
        y_PD = self.ops.weighted_swiglu_linear(
            gate_up_P2I, weights_NK[row_P, choice_P], self.down_proj, groups, self.recompute_swiglu
        )
        return self.ops.sum_rows(y_PD, row_P, len(x[0]))

    def sorted_pairs(self, experts_NK: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
        """Row and choice of each pair, sorted by expert [P]."""
        # With the number of pairs given, nonzero does not make the host wait for it.
        row_P, choice_P = torch.nonzero_static(experts_NK >= 0, size=pairs).unbind(1)
        order_P = experts_NK[row_P, choice_P].argsort(stable=True)
        return row_P[order_P], choice_P[order_P]

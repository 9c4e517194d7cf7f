"""The SwiGLU MLP (arXiv 2002.05202): of dense layers, and of shared experts."""

from __future__ import annotations

from torch import Tensor, nn

from parallel.tape.tape import Tape
from parallel.tape.weight_gradients import WeightGradients, linear
from trainer.model.matrix import Matrix


class MLP(nn.Module):
    """down(silu(gate(x)) x up(x)), widths dim -> inner -> dim."""

    def __init__(self, dim: int, inner: int, recompute_swiglu: bool) -> None:
        super().__init__()
        self.gate_proj = Matrix(inner, dim)
        self.up_proj = Matrix(inner, dim)
        self.down_proj = Matrix(dim, inner)
        self.recompute_swiglu = recompute_swiglu

    def forward(self, tape: Tape, x_TD: Tensor) -> Tensor:
        queue = tape.weight_gradients
        gate_TI, up_TI = tape.compute(self.gate_up, x_TD, queue)
        act_TI = tape.compute(swiglu, gate_TI, up_TI, recompute=self.recompute_swiglu)
        return tape.compute(self.down, act_TI, queue)

    def gate_up(self, x_TD: Tensor, queue: WeightGradients) -> tuple[Tensor, Tensor]:
        return (
            linear(x_TD, self.gate_proj.weight, queue),
            linear(x_TD, self.up_proj.weight, queue),
        )

    def down(self, act_TI: Tensor, queue: WeightGradients) -> Tensor:
        return linear(act_TI, self.down_proj.weight, queue)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return nn.functional.silu(gate) * up

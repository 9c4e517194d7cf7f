"""The SwiGLU MLP (arXiv 2002.05202): of dense layers, and of shared experts."""

from __future__ import annotations

from torch import Tensor, nn

from parallel.ops.ops import Linear
from parallel.tape.passes import Pass
from parallel.tape.tape import Tape
from trainer.model.options import LayerOptions


class MLP(nn.Module):
    """down(silu(gate(x)) x up(x)), widths dim -> inner -> dim."""

    def __init__(self, options: LayerOptions, inner: int) -> None:
        super().__init__()
        ops, dim = options.ops, options.model.dim
        self.gate_proj = Linear(ops, dim, inner)
        self.up_proj = Linear(ops, dim, inner)
        self.down_proj = Linear(ops, inner, dim)
        self.recompute_swiglu = options.recompute.swiglu

    def forward(self, tape: Tape, x_TD: Tensor) -> Pass[Tensor]:
        gate_TI, up_TI = tape.compute(self.gate_up, x_TD)
        act_TI = tape.compute(swiglu, gate_TI, up_TI, recompute=self.recompute_swiglu)
        yield from ()  # a pass, as every MLP of a layer is; this one exchanges nothing
        return tape.compute(self.down, act_TI)

    def gate_up(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        return self.gate_proj(x_TD), self.up_proj(x_TD)

    def down(self, act_TI: Tensor) -> Tensor:
        return self.down_proj(act_TI)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return nn.functional.silu(gate) * up

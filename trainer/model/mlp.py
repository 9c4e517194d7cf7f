"""The SwiGLU MLP (arXiv 2002.05202): of dense layers, and of shared experts."""

from __future__ import annotations

from torch import Tensor, nn

from parallel.ops.ops import Linear
from parallel.tape.passes import Pass
from parallel.tape.tape import Tape
from trainer.model.options import LayerOptions
from trainer.model.places import Places


class MLP(nn.Module):
    """down(silu(gate(x)) x up(x)), widths dim -> inner -> dim."""

    def __init__(self, options: LayerOptions, inner: int) -> None:
        super().__init__()
        ops, dim = options.ops, options.model.dim
        self.ops = ops
        self.gate_proj = Linear(ops, dim, inner)
        self.up_proj = Linear(ops, dim, inner)
        self.down_proj = Linear(ops, inner, dim)
        self.recompute, self.recompute_swiglu = options.recompute, options.recompute_swiglu

    def forward(
        self, tape: Tape, x_TD: Tensor, n_TD: Tensor, places: Places | None = None
    ) -> Pass[Tensor]:
        """x, the residual stream, and this MLP of n, [T, D] each -> [T, D]."""
        yield from ()  # a pass, as every MLP of a layer is; this one exchanges nothing
        return x_TD + tape.compute(self.mix, tape, n_TD, recompute=self.recompute.layer)

    def mix(self, tape: Tape, n_TD: Tensor) -> Tensor:
        n = self.ops.operand(tape, n_TD, recompute=self.recompute.norm)
        gate_TI, up_TI = self.gate_proj(n), self.up_proj(n)
        return self.ops.swiglu_linear(gate_TI, up_TI, self.down_proj.weight, self.recompute_swiglu)

"""A transformer layer, and the MTP module around one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parallel.ops.ops import Embedding, Linear
from parallel.tape.passes import Pass
from parallel.tape.tape import Tape
from trainer.model.attention import MLA
from trainer.model.documents import Documents
from trainer.model.mlp import MLP
from trainer.model.moe import MoE
from trainer.model.norm import RMSNorm
from trainer.model.options import LayerOptions


class Layer(nn.Module):
    """Pre-norm attention and MLP (dense or MoE), each with its residual."""

    def __init__(self, options: LayerOptions, attention: MLA, mlp: MLP | MoE) -> None:
        super().__init__()
        ops, model = options.ops, options.model
        self.recompute = options.recompute
        self.input_layernorm = RMSNorm(ops, model.dim, model.norm_eps)
        self.self_attn = attention
        self.post_attention_layernorm = RMSNorm(ops, model.dim, model.norm_eps)
        self.mlp = mlp

    def forward(self, tape: Tape, x_TD: Tensor, documents: Documents | None = None) -> Pass[Tensor]:
        """[T, D] -> [T, D]. documents: that keep to themselves."""
        x_TD, n_TD = tape.compute(
            self.attend, tape, x_TD, documents, recompute=self.recompute.layer
        )
        x_TD = yield from self.mlp(tape, x_TD, n_TD)
        return tape.release(x_TD)

    def attend(
        self, tape: Tape, x_TD: Tensor, documents: Documents | None
    ) -> tuple[Tensor, Tensor]:
        """x after attention, and that normalised for the MLP, [T, D] each."""
        norm = self.recompute.norm
        n_TD = tape.compute(self.input_layernorm.forward, x_TD, recompute=norm)
        x_TD = x_TD + self.self_attn(tape, n_TD, documents)
        return x_TD, tape.compute(self.post_attention_layernorm.forward, x_TD, recompute=norm)


class SharedHead(nn.Module):
    """The norm before the output head that an MTP module shares with the model."""

    def __init__(self, options: LayerOptions) -> None:
        super().__init__()
        self.norm = RMSNorm(options.ops, options.model.dim, options.model.norm_eps)


class MTPModule(Layer):
    """One module of multi-token prediction (DeepSeek-V3 section 2.2, eq. 21 to 23).

    It joins the previous depth's hidden state with the embedding of the next token and runs a full
    layer. The embedding comes first in the joined vector, as in the released weights; eq. 21 has
    the hidden state first.
    """

    def __init__(self, options: LayerOptions, attention: MLA, mlp: MLP | MoE) -> None:
        super().__init__(options, attention, mlp)
        ops, model = options.ops, options.model
        self.enorm = RMSNorm(ops, model.dim, model.norm_eps)
        self.hnorm = RMSNorm(ops, model.dim, model.norm_eps)
        self.eh_proj = Linear(ops, 2 * model.dim, model.dim)
        self.shared_head = SharedHead(options)

    def predict(
        self,
        tape: Tape,
        hidden_TD: Tensor,
        tokens_T: Tensor,
        embed: Embedding,
        documents: Documents | None,
    ) -> Pass[Tensor]:
        """The hidden state [T, D] of this depth, before its head's norm.

        hidden_TD: of the previous depth, after its head's norm; for the first, the model's after
        its final norm.
        tokens_T: the tokens this depth's k-th further prediction is conditioned on.
        """
        joined_T2D = tape.compute(
            self.join, hidden_TD, tokens_T, embed, recompute=self.recompute.norm
        )
        return (yield from self(tape, self.eh_proj(joined_T2D), documents))

    def join(self, hidden_TD: Tensor, tokens_T: Tensor, embed: Embedding) -> Tensor:
        return torch.cat([self.enorm(embed(tokens_T)), self.hnorm(hidden_TD)], dim=-1)

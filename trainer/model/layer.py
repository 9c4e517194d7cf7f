"""A transformer layer, and the MTP module around one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parallel.tape.passes import Pass
from parallel.tape.tape import Tape
from parallel.tape.weight_gradients import WeightGradients, embedding, linear
from trainer.config.schema import ModelConfig, RecomputeConfig
from trainer.model.attention import MLA
from trainer.model.matrix import Matrix
from trainer.model.mlp import MLP
from trainer.model.moe import MoE
from trainer.model.norm import RMSNorm


class Layer(nn.Module):
    """Pre-norm attention and MLP (dense or MoE), each with its residual."""

    def __init__(
        self,
        model: ModelConfig,
        recompute: RecomputeConfig,
        attention: MLA,
        mlp: MLP | MoE,
    ) -> None:
        super().__init__()
        self.recompute_norm = recompute.norm
        self.input_layernorm = RMSNorm(model.dim, model.norm_eps)
        self.self_attn = attention
        self.post_attention_layernorm = RMSNorm(model.dim, model.norm_eps)
        self.mlp = mlp

    def forward(self, tape: Tape, x_TD: Tensor) -> Pass[Tensor]:
        x_TD = tape.compute(torch.add, x_TD, self.attend(tape, x_TD))
        n_TD = tape.compute(
            self.post_attention_layernorm.forward, x_TD, recompute=self.recompute_norm
        )
        mixed = self.mlp(tape, n_TD)
        if isinstance(self.mlp, MoE):
            mixed = yield from mixed
        x_TD = tape.compute(torch.add, x_TD, mixed)
        tape.release()
        return x_TD

    def attend(self, tape: Tape, x_TD: Tensor) -> Tensor:
        n_TD = tape.compute(self.input_layernorm.forward, x_TD, recompute=self.recompute_norm)
        return self.self_attn(tape, n_TD)


class SharedHead(nn.Module):
    """The norm before the output head that an MTP module shares with the model."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(model.dim, model.norm_eps)


class MTPModule(Layer):
    """One module of multi-token prediction (DeepSeek-V3 section 2.2, eq. 21 to 23).

    It joins the previous depth's hidden state with the embedding of the next token and runs a full
    layer. The embedding comes first in the joined vector, as in the released weights; eq. 21 has
    the hidden state first.
    """

    def __init__(
        self, model: ModelConfig, recompute: RecomputeConfig, attention: MLA, mlp: MLP | MoE
    ) -> None:
        super().__init__(model, recompute, attention, mlp)
        self.enorm = RMSNorm(model.dim, model.norm_eps)
        self.hnorm = RMSNorm(model.dim, model.norm_eps)
        self.eh_proj = Matrix(model.dim, 2 * model.dim)
        self.shared_head = SharedHead(model)

    def predict(
        self, tape: Tape, hidden_TD: Tensor, tokens_T: Tensor, embed_weight: Tensor
    ) -> Pass[Tensor]:
        """The hidden state [T, D] of this depth, before its head's norm.

        hidden_TD: of the previous depth, after its head's norm; for the first, the model's after
        its final norm.
        tokens_T: the tokens this depth's k-th further prediction is conditioned on.
        """
        queue = tape.weight_gradients
        joined_T2D = tape.compute(
            self.join, hidden_TD, tokens_T, embed_weight, queue, recompute=self.recompute_norm
        )
        x_TD = tape.compute(self.project, joined_T2D, queue)
        return (yield from self(tape, x_TD))

    def join(
        self, hidden_TD: Tensor, tokens_T: Tensor, embed_weight: Tensor, queue: WeightGradients
    ) -> Tensor:
        embedded_TD = embedding(tokens_T, embed_weight, queue)
        return torch.cat([self.enorm(embedded_TD), self.hnorm(hidden_TD)], dim=-1)

    def project(self, joined_T2D: Tensor, queue: WeightGradients) -> Tensor:
        return linear(joined_T2D, self.eh_proj.weight, queue)

"""A transformer layer, and the MTP module around one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parallel.ops.ops import Embedding, Linear
from parallel.tape.passes import Pass
from parallel.tape.tape import Tape
from trainer.model.attention import MLA
from trainer.model.mlp import MLP
from trainer.model.moe import MoE
from trainer.model.norm import RMSNorm
from trainer.model.options import LayerOptions
from trainer.model.places import Places


class Layer(nn.Module):
    """Pre-norm attention and MLP (dense or MoE), each with its residual."""

    def __init__(self, options: LayerOptions, attention: MLA, mlp: MLP | MoE) -> None:
        super().__init__()
        ops, model = options.ops, options.model
        self.options, self.recompute = options, options.recompute
        self.input_layernorm = RMSNorm(ops, model.dim, model.norm_eps)
        self.self_attn = attention
        self.post_attention_layernorm = RMSNorm(ops, model.dim, model.norm_eps)
        self.mlp = mlp

    def forward(self, tape: Tape, x_TD: Tensor, places: Places | None = None) -> Pass[Tensor]:
        """[T, D] -> [T, D]. places: of the tokens, where they are not in sequences end to end."""
        if places is not None and places.chunks is not None:
            x_TD, n_TD = yield from self.attend_by_chunks(tape, x_TD, places)
        else:
            x_TD, n_TD = tape.compute(
                self.attend, tape, x_TD, places, recompute=self.recompute.layer
            )
        x_TD = yield from self.mlp(tape, x_TD, n_TD, places)
        return tape.release(x_TD)

    def attend(self, tape: Tape, x_TD: Tensor, places: Places | None) -> tuple[Tensor, Tensor]:
        """x after attention, and that normalised for the MLP, [T, D] each."""
        n_TD = self.normalised(self.input_layernorm, tape, x_TD)
        x_TD = x_TD + self.self_attn(tape, n_TD, places)
        return x_TD, self.normalised(self.post_attention_layernorm, tape, x_TD)

    def attend_by_chunks(
        self, tape: Tape, x_TD: Tensor, places: Places
    ) -> Pass[tuple[Tensor, Tensor]]:
        """The same where ranks share sequences: they tell each other their latents."""
        context, recompute = self.options.context, self.recompute.layer
        assert context is not None
        query, both_TE = tape.compute(self.latents, tape, x_TD, recompute=recompute)
        gather = context.gather(both_TE)
        all_TE, x_TD, query = yield from tape.exchange(
            "latents", gather, both_TE, across=(x_TD, query), turns=2
        )
        return tape.compute(
            self.attend_to_all, tape, x_TD, query, all_TE, places, recompute=recompute
        )

    def latents(self, tape: Tape, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Query latents, and key-value latents beside keys with position [T, C + R]."""
        n_TD = self.normalised(self.input_layernorm, tape, x_TD)
        query, latent_TC, key_TR = self.self_attn.latents(tape, n_TD)
        return query, torch.cat([latent_TC, key_TR], -1)

    def attend_to_all(
        self, tape: Tape, x_TD: Tensor, query: Tensor, all_TE: Tensor, places: Places
    ) -> tuple[Tensor, Tensor]:
        """As `attend`, from the latents of all ranks."""
        x_TD = x_TD + self.self_attn.forward_of_chunks(tape, query, all_TE, places)
        return x_TD, self.normalised(self.post_attention_layernorm, tape, x_TD)

    def normalised(self, norm: RMSNorm, tape: Tape, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return tape.compute(norm.forward, x_TD, recompute=self.recompute.norm)


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
        places: Places | None,
    ) -> Pass[Tensor]:
        """The hidden state [T, D] of this depth, before its head's norm.

        hidden_TD: of the previous depth, after its head's norm; for the first, the model's after
        its final norm.
        tokens_T: the tokens this depth's k-th further prediction is conditioned on.
        """
        joined_T2D = tape.compute(
            self.join, hidden_TD, tokens_T, embed, recompute=self.recompute.norm
        )
        return (yield from self(tape, self.eh_proj(joined_T2D), places))

    def join(self, hidden_TD: Tensor, tokens_T: Tensor, embed: Embedding) -> Tensor:
        return torch.cat([self.enorm(embed(tokens_T)), self.hnorm(hidden_TD)], dim=-1)

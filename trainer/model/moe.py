"""The mixture-of-experts MLP: router, shared experts, and routed experts spread over ranks.

Source: DeepSeek-V3 (arXiv 2412.19437) section 2.1.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parallel.expert import router
from parallel.expert.dispatch import Dispatcher
from parallel.expert.experts import GroupedExperts
from parallel.ops.ops import Ops
from parallel.tape.passes import Pass
from parallel.tape.tape import Tape
from trainer.model.mlp import MLP
from trainer.model.options import LayerOptions
from trainer.model.places import Places

BALANCE = "balance"
"""The loss that every MoE layer adds: the sum of its sequences' balance."""


class Gate(nn.Module):
    """The router's weights; its bias balances the experts and is moved by no gradient."""

    e_score_correction_bias: Tensor

    def __init__(self, ops: Ops, dim: int, experts: int) -> None:
        super().__init__()
        self.ops = ops
        self.weight = ops.parameter(experts, dim)
        self.register_buffer("e_score_correction_bias", ops.accurate(torch.zeros(experts)))

    def forward(self, x_TD: Tensor) -> Tensor:
        """Logits [T, E], float32 or wider: a choice between experts must not hang on rounding."""
        return self.ops.accurate_linear(x_TD, self.weight)


@dataclass(frozen=True)
class ExpertsHere:
    """The routed experts of one layer on this rank. held: their numbers in the model. dispatcher:
    the exchange with the ranks that hold the others."""

    held: tuple[int, ...]
    dispatcher: Dispatcher


class MoE(nn.Module):
    """Shared experts on every token plus top-k routed experts.

    name: of the layer, for the tally of its experts' load.
    """

    def __init__(self, options: LayerOptions, name: str, experts: ExpertsHere) -> None:
        super().__init__()
        model, ops, c = options.model, options.ops, options.model.moe
        self.name, self.config, self.sequence_length = name, c, options.sequence_length
        self.dispatcher, self.recompute = experts.dispatcher, options.recompute
        self.choose, self.context = options.choose, options.context
        self.options = router.RouterOptions(
            c.score, c.top_k, c.groups, c.top_groups, c.normalise, c.scale
        )
        self.gate = Gate(ops, model.dim, c.experts)
        self.experts = GroupedExperts(
            ops, experts.held, model.dim, c.expert_dim, options.recompute_swiglu
        )
        self.shared_experts: MLP | None = None
        if c.shared_experts:
            self.shared_experts = MLP(options, c.shared_experts * c.expert_dim)

    def forward(
        self, tape: Tape, x_TD: Tensor, n_TD: Tensor, places: Places | None = None
    ) -> Pass[Tensor]:
        """x, the residual stream, and the experts of n, [T, D] each -> [T, D]."""
        scores_TE, weights_TK, experts_TK = self.choose_experts(n_TD)
        hits_BE = yield from self.hits(tape, scores_TE, places)
        tape.add_loss(BALANCE, self.balance(scores_TE, hits_BE))
        tape.add_tally(self.name, router.expert_load(experts_TK, self.config.experts))
        # Counts travel while the other pass of a pair, and the shared experts, compute.
        route = yield from self.dispatcher.route(tape, experts_TK)
        if self.shared_experts is not None:
            x_TD = yield from self.shared_experts(tape, x_TD, n_TD)
        received, x_TD = yield from route.dispatch(tape, n_TD, weights_TK, x_TD)
        with tape.offload(self.recompute.offload):
            y_ND = tape.compute(
                self.experts.forward, *received.parts(), recompute=self.recompute.layer
            )
        return (yield from route.combine(tape, y_ND, x_TD))

    def choose_experts(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [T, E], routing weights [T, K] and experts [T, K]."""
        scores_TE = router.scores(self.gate(x_TD), self.options)
        bias_E = self.gate.e_score_correction_bias
        return scores_TE, *self.choose(scores_TE, bias_E, self.options)

    def hits(self, tape: Tape, scores_TE: Tensor, places: Places | None) -> Pass[Tensor]:
        """How many tokens of each sequence have each expert among their best, [B, E]."""
        chunks = None if places is None else places.chunks
        if chunks is None:
            scores_BSE = scores_TE.unflatten(0, (-1, self.sequence_length))
            return router.sequence_hits(scores_BSE, self.config.top_k)
        assert self.context is not None
        rows_BTE = scores_TE.unflatten(0, (-1, 2 * chunks.chunk))
        hits_BE = router.sequence_hits(rows_BTE, self.config.top_k)
        sums = yield from tape.exchange_counts("hits", self.context.sum(), hits_BE)
        return sums()[0]

    def balance(self, scores_TE: Tensor, hits_BE: Tensor) -> Tensor:
        """The sum of the sequences' balance; where ranks share them, of the tokens here."""
        scores_BTE = scores_TE.unflatten(0, (len(hits_BE), -1))
        length, top_k = self.sequence_length, self.config.top_k
        return router.sequence_balance(scores_BTE, hits_BE, top_k, length).sum()

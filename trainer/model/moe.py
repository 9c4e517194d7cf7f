"""The mixture-of-experts MLP: router, shared experts, and routed experts spread over ranks.

Source: DeepSeek-V3 (arXiv 2412.19437) section 2.1.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parallel.expert import router
from parallel.expert.dispatch import Dispatcher
from parallel.expert.experts import GroupedExperts
from parallel.tape.passes import Pass
from parallel.tape.tape import Tape
from parallel.tape.weight_gradients import WeightGradients, linear
from trainer.config.schema import ModelConfig, MoEConfig, RecomputeConfig
from trainer.model.mlp import MLP


class Gate(nn.Module):
    """The router's weights; its bias balances the experts and is moved by no gradient."""

    e_score_correction_bias: Tensor

    def __init__(self, experts: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, dim))
        self.register_buffer("e_score_correction_bias", torch.zeros(experts))


class MoE(nn.Module):
    """Shared experts on every token plus top-k routed experts.

    name: of the layer, for the tally of its experts' load. dispatcher: the exchange with the other
    ranks. experts_here: routed experts on this rank. balance_weight: of one sequence's balance
    loss in the total loss.
    """

    def __init__(
        self,
        name: str,
        model: ModelConfig,
        recompute: RecomputeConfig,
        sequence_length: int,
        dispatcher: Dispatcher,
        experts_here: int,
        balance_weight: float,
    ) -> None:
        super().__init__()
        c: MoEConfig = model.moe
        self.name, self.config, self.sequence_length = name, c, sequence_length
        self.balance_weight = balance_weight
        self.dispatcher = dispatcher
        self.options = router.RouterOptions(
            c.score, c.top_k, c.groups, c.top_groups, c.normalise, c.scale
        )
        self.gate = Gate(c.experts, model.dim)
        self.experts = GroupedExperts(experts_here, model.dim, c.expert_dim, recompute.swiglu)
        self.shared_experts: MLP | None = None
        if c.shared_experts:
            self.shared_experts = MLP(model.dim, c.shared_experts * c.expert_dim, recompute.swiglu)

    def forward(self, tape: Tape, x_TD: Tensor) -> Pass[Tensor]:
        weights_TK, experts_TK, balance = tape.compute(self.route, x_TD, tape.weight_gradients)
        tape.add_loss("balance", balance, self.balance_weight)
        tape.add_tally(self.name, router.expert_load(experts_TK, self.config.experts))
        # The counts travel while the shared experts compute: nothing waits for them but dispatch.
        plan = self.dispatcher.plan(tape, experts_TK)
        shared_TD = None if self.shared_experts is None else self.shared_experts(tape, x_TD)
        received = yield from plan.dispatch(tape, x_TD, weights_TK)
        y_ND = self.experts(tape, received)
        routed_TD = yield from plan.combine(tape, y_ND)
        return routed_TD if shared_TD is None else tape.compute(torch.add, routed_TD, shared_TD)

    def route(self, x_TD: Tensor, queue: WeightGradients) -> tuple[Tensor, Tensor, Tensor]:
        """Routing weights [T, K], experts [T, K], and the sum of the sequences' balance."""
        scores_TE = router.scores(linear(x_TD, self.gate.weight, queue), self.options)
        weights_TK, experts_TK = router.choose(
            scores_TE, self.gate.e_score_correction_bias, self.options
        )
        scores_BSE = scores_TE.unflatten(0, (-1, self.sequence_length))
        balance = router.sequence_balance(scores_BSE, self.config.top_k).sum()
        return weights_TK, experts_TK, balance

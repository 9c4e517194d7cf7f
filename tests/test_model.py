"""The model against a naive one written from the papers: loops, complex rotations, plain autograd.

What both compute is DeepSeek-V3 (arXiv 2412.19437) sections 2.1 and 2.2; with softmax scores the
router is DeepSeek-V2's (arXiv 2405.04434, section 2.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parallel.expert.router import (
    RouterOptions,
    choose,
    move_bias,
    scores,
    sequence_balance,
    sequence_hits,
)
from parallel.ranks.process import Process
from trainer.build.layout import Layout, build
from trainer.config.schema import (
    AttentionConfig,
    Config,
    DataConfig,
    ModelConfig,
    MoEConfig,
    MTPConfig,
    PipelineConfig,
    PrecisionConfig,
    RunConfig,
)
from trainer.model.names import named_biases, named_tensors
from trainer.objective.pretraining import TOKENS
from trainer.recipe.progress import Progress
from trainer.run.step import Trainer

TOLERANCE = 1e-10
SEQUENCES, LENGTH, VOCABULARY = 4, 7, 61
V3 = MoEConfig(
    experts=8, shared_experts=1, top_k=3, groups=4, top_groups=2, expert_dim=6, scale=2.5,
    balance_alpha=0.05,
)  # fmt: skip
V2 = MoEConfig(
    experts=8, shared_experts=0, top_k=3, expert_dim=6, score="softmax", normalise=False,
    balance_alpha=0.05,
)  # fmt: skip
V2_GROUPS = MoEConfig(
    experts=8, shared_experts=2, top_k=2, groups=4, top_groups=2, expert_dim=6, score="softmax",
    normalise=False, scale=1.5, balance_alpha=0.05,
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One architecture."""

    q_lora_rank: int | None
    moe: MoEConfig
    dense_layers: int
    mtp: int

    def config(self) -> Config:
        return Config(
            run=RunConfig(seed=5),
            precision=PrecisionConfig("float64"),
            pipeline=PipelineConfig("1f1b", micro_batches=2),
            model=ModelConfig(
                vocab_size=VOCABULARY,
                layers=3,
                dense_layers=self.dense_layers,
                dim=12,
                dense_dim=20,
                norm_eps=1e-3,
                init_std=0.3,
                attention=AttentionConfig(3, self.q_lora_rank, 8, 5, 4, 7, rope_theta=100.0),
                moe=self.moe,
                mtp=MTPConfig(self.mtp, 0.3),
            ),
            data=DataConfig(sequence_length=LENGTH, global_batch=SEQUENCES),
        )


VARIANTS = {
    "direct queries, groups, MTP 1": Variant(None, V3, dense_layers=2, mtp=1),
    "V2 router, nothing shared, MTP 2": Variant(9, V2, dense_layers=0, mtp=2),
    "V2 groups, 2 shared, MTP 0": Variant(9, V2_GROUPS, dense_layers=2, mtp=0),
    "query latent, groups, MTP 2": Variant(9, V3, dense_layers=0, mtp=2),
}


class Naive:
    """The whole model and its loss, from weights under their checkpoint names."""

    def __init__(self, config: Config, weights: dict[str, Tensor], biases: dict[str, Tensor]):
        self.config, self.weights, self.biases = config, weights, biases
        self.balance = torch.zeros((), dtype=torch.float64)

    def losses(self, windows: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Mean cross-entropy, that of each MTP depth, and the balance as the loss takes it."""
        model = self.config.model
        logits: list[list[Tensor]] = [[] for _ in range(1 + model.mtp.depth)]
        for window in windows:
            for depth, sequence_logits in enumerate(self.sequence(window)):
                logits[depth].append(sequence_logits)
        means = [
            nn.functional.cross_entropy(
                torch.cat(rows), windows[:, 1 + depth : 1 + depth + LENGTH].flatten()
            )
            for depth, rows in enumerate(logits)
        ]
        return means[0], means[1:], self.balance / len(windows)

    def sequence(self, window: Tensor) -> list[Tensor]:
        """Logits of one sequence, [S, V], of the model and of each MTP depth."""
        model, w = self.config.model, self.weights
        h = w["model.embed_tokens.weight"][window[:LENGTH]]
        for index in range(model.layers):
            h = self.layer(f"model.layers.{index}", h, dense=index < model.dense_layers)
        h = self.norm("model.norm", h)
        logits = [h @ w["lm_head.weight"].T]
        for depth in range(1, model.mtp.depth + 1):
            name = f"model.layers.{model.layers + depth - 1}"
            embedded = w["model.embed_tokens.weight"][window[depth : depth + LENGTH]]
            joined = [self.norm(f"{name}.enorm", embedded), self.norm(f"{name}.hnorm", h)]
            h = torch.cat(joined, -1) @ w[f"{name}.eh_proj.weight"].T
            h = self.norm(f"{name}.shared_head.norm", self.layer(name, h, dense=False))
            logits.append(h @ w["lm_head.weight"].T)
        return logits

    def layer(self, name: str, h: Tensor, dense: bool) -> Tensor:
        h = h + self.attention(f"{name}.self_attn", self.norm(f"{name}.input_layernorm", h))
        u = self.norm(f"{name}.post_attention_layernorm", h)
        return h + (self.mlp(f"{name}.mlp", u) if dense else self.moe(f"{name}.mlp", u))

    def norm(self, name: str, x: Tensor) -> Tensor:
        rms = (x.pow(2).mean(-1, keepdim=True) + self.config.model.norm_eps).sqrt()
        return x / rms * self.weights[f"{name}.weight"]

    def mlp(self, name: str, x: Tensor) -> Tensor:
        gate = x @ self.weights[f"{name}.gate_proj.weight"].T
        up = x @ self.weights[f"{name}.up_proj.weight"].T
        return (gate * torch.sigmoid(gate) * up) @ self.weights[f"{name}.down_proj.weight"].T

    def attention(self, name: str, x: Tensor) -> Tensor:
        """Equations 1 to 11, a head at a time."""
        c, w = self.config.model.attention, self.weights
        nope, rope, value = c.nope_head_dim, c.rope_head_dim, c.v_head_dim
        if c.q_lora_rank is None:
            queries = x @ w[f"{name}.q_proj.weight"].T
        else:
            latent = self.norm(f"{name}.q_a_layernorm", x @ w[f"{name}.q_a_proj.weight"].T)
            queries = latent @ w[f"{name}.q_b_proj.weight"].T
        both = x @ w[f"{name}.kv_a_proj_with_mqa.weight"].T
        shared_key = self.rotate(both[:, c.kv_lora_rank :])
        latent = self.norm(f"{name}.kv_a_layernorm", both[:, : c.kv_lora_rank])
        key_values = latent @ w[f"{name}.kv_b_proj.weight"].T
        heads = []
        for head in range(c.heads):
            q = queries[:, head * (nope + rope) : (head + 1) * (nope + rope)]
            kv = key_values[:, head * (nope + value) : (head + 1) * (nope + value)]
            affinity = q[:, :nope] @ kv[:, :nope].T + self.rotate(q[:, nope:]) @ shared_key.T
            future = torch.ones(len(x), len(x)).triu(1).bool()
            affinity = (affinity / math.sqrt(nope + rope)).masked_fill(future, -math.inf)
            heads.append(affinity.softmax(-1) @ kv[:, nope:])
        return torch.cat(heads, -1) @ w[f"{name}.o_proj.weight"].T

    def rotate(self, x: Tensor) -> Tensor:
        """Each pair of neighbours is a complex number, turned by position x theta^(-2i / R)."""
        width = x.shape[1]
        turned = []
        for position, row in enumerate(x):
            pairs = torch.view_as_complex(row.reshape(-1, 2).clone())
            exponents = torch.arange(width // 2, dtype=torch.float64) * -2 / width
            angles = position * self.config.model.attention.rope_theta**exponents
            turned.append(torch.view_as_real(pairs * torch.exp(1j * angles)).ravel())
        return torch.stack(turned)

    def moe(self, name: str, u: Tensor) -> Tensor:
        """Equations 12 to 20, a token and an expert at a time."""
        c = self.config.model.moe
        affinity = u @ self.weights[f"{name}.gate.weight"].T
        s = affinity.sigmoid() if c.score == "sigmoid" else affinity.softmax(-1)
        bias = self.biases[f"{name}.gate.e_score_correction_bias"]
        outputs = []
        for token, score in zip(u, s):
            chosen = self.choose((score + bias).tolist())
            total = sum(score[i] for i in chosen) if c.normalise else 1.0
            output = torch.zeros_like(token)
            for expert in chosen:
                gate = score[expert] / total * c.scale
                output = output + gate * self.mlp(f"{name}.experts.{expert}", token)
            outputs.append(output)
        f = [0.0] * c.experts
        for score in s.tolist():
            for expert in sorted(range(c.experts), key=score.__getitem__)[-c.top_k :]:
                f[expert] += c.experts / (c.top_k * len(s))
        for expert in range(c.experts):
            self.balance = self.balance + f[expert] * (s[:, expert] / s.sum(-1)).mean()
        y = torch.stack(outputs)
        return y + self.mlp(f"{name}.shared_experts", u) if c.shared_experts else y

    def choose(self, biased: list[float]) -> list[int]:
        """The best experts of the best groups; a group counts its two best experts (V3), or its
        best one (V2)."""
        c = self.config.model.moe
        size = c.experts // c.groups
        best = 2 if c.score == "sigmoid" else 1
        by_group = [sorted(biased[g * size : (g + 1) * size])[-best:] for g in range(c.groups)]
        kept = sorted(range(c.groups), key=lambda g: sum(by_group[g]))[-c.top_groups :]
        allowed = [i for i in range(c.experts) if i // size in kept]
        return sorted(allowed, key=biased.__getitem__)[-c.top_k :]


def _layout(config: Config) -> Layout:
    """One process, with norms and router biases that are not their initial ones and zeros."""
    layout = build(config, Process(), torch.device("cpu"))
    generator = torch.Generator().manual_seed(8)
    for _, tensor in named_tensors(layout.part):
        if tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5, generator=generator)
    for _, bias in named_biases(layout.part):
        bias.uniform_(-0.3, 0.3, generator=generator)
    return layout


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_losses_and_every_gradient_are_those_of_a_naive_model(variant: Variant) -> None:
    """Guards the whole model: attention, rope, router, experts, MTP, each loss and its weight."""
    config = variant.config()
    layout = _layout(config)
    generator = torch.Generator().manual_seed(2)
    windows = torch.randint(
        0, VOCABULARY, (SEQUENCES, LENGTH + 1 + variant.mtp), generator=generator
    )
    totals = Trainer(layout).accumulate(
        Progress(), lambda m: {TOKENS: windows.split(SEQUENCES // 2)[m]}
    )

    weights = {n: t.clone().requires_grad_() for n, t in named_tensors(layout.part)}
    naive = Naive(config, weights, dict(named_biases(layout.part)))
    loss, mtp_losses, balance = naive.losses(windows)
    total = loss + variant.moe.balance_alpha * balance
    for mtp_loss in mtp_losses:
        total = total + config.model.mtp.weight / len(mtp_losses) * mtp_loss
    total.backward()

    tokens = SEQUENCES * LENGTH
    parts = {"loss": loss.item() * tokens, "balance": balance.item() * SEQUENCES}
    parts |= {f"mtp_{d + 1}_loss": mtp.item() * tokens for d, mtp in enumerate(mtp_losses)}
    assert totals.losses == pytest.approx(parts, rel=TOLERANCE)
    gradients = dict(named_tensors(layout.part, lambda p: p.grad))
    assert set(gradients) == set(weights)
    for name, weight in weights.items():
        expected = torch.zeros_like(weight) if weight.grad is None else weight.grad
        np.testing.assert_allclose(
            gradients[name].numpy(), expected.numpy(), rtol=0, atol=TOLERANCE, err_msg=name
        )
    # No comparison of nothing with nothing: only an expert that no token chose has no gradient.
    still = [name for name, gradient in gradients.items() if not gradient.any()]
    assert all(".mlp.experts." in name for name in still)
    assert len(still) < len(gradients) / 4


def _rows(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _chosen(experts_TK: Tensor) -> list[list[int]]:
    return [sorted(row) for row in experts_TK.tolist()]


def test_router_limits_each_token_to_its_best_groups() -> None:
    """V3 counts the two best of a group, V2 the best one; what lies elsewhere is out of reach."""
    # Groups of 3. Sums of two: 0.96, 0.9, 1.08, 0.15; best: 0.5, 0.8, 0.6, 0.08.
    token = _rows([0.5, 0.46, 0.4, 0.8, 0.1, 0.05, 0.6, 0.48, 0.0, 0.08, 0.07, 0.06])
    none = torch.zeros(12, dtype=torch.float64)
    v3 = RouterOptions("sigmoid", top_k=4, groups=4, top_groups=2)
    assert _chosen(choose(token, none, v3)[1]) == [[0, 1, 6, 7]]
    v2 = RouterOptions("softmax", top_k=4, groups=4, top_groups=2)
    assert _chosen(choose(token, none, v2)[1]) == [[3, 4, 6, 7]]
    assert _chosen(choose(token, none, RouterOptions(top_k=4))[1]) == [[0, 3, 6, 7]]


def test_router_bias_changes_the_choice_and_never_the_weight() -> None:
    token = _rows([0.5, 0.4, 0.3, 0.2]).requires_grad_()
    options = RouterOptions("sigmoid", top_k=2, scale=2.5)
    bias = torch.tensor([0.0, -0.25, 0.0, 0.0], dtype=torch.float64)
    weights, experts = choose(token, bias, options)
    by_expert = dict(zip(experts[0].tolist(), weights[0].tolist()))
    assert by_expert == pytest.approx({0: 2.5 * 0.5 / 0.8, 2: 2.5 * 0.3 / 0.8})
    weights, experts = choose(token, 0 * bias, RouterOptions(top_k=2, normalise=False))
    assert dict(zip(experts[0].tolist(), weights[0].tolist())) == pytest.approx({0: 0.5, 1: 0.4})


def test_router_scores_are_sigmoid_or_softmax() -> None:
    logits = _rows([0.0, math.log(3.0)])
    assert scores(logits, RouterOptions("sigmoid"))[0].tolist() == pytest.approx([0.5, 0.75])
    assert scores(logits, RouterOptions("softmax"))[0].tolist() == pytest.approx([0.25, 0.75])


def test_sequence_balance_is_one_at_best_and_grows_with_imbalance() -> None:
    """f_i P_i of two sequences of two tokens over two experts, top 1, by hand."""
    balanced = _rows([0.75, 0.25], [0.25, 0.75])  # f = 1, 1; P = 1/2, 1/2
    skewed = _rows([0.75, 0.25], [0.3, 0.1])  # f = 2, 0; P = 3/4, 1/4
    both = torch.stack([balanced, skewed])
    found = sequence_balance(both, sequence_hits(both, 1), 1, both.shape[1])
    assert found.tolist() == pytest.approx([1, 1.5])


def test_bias_moves_by_gamma_against_the_load() -> None:
    bias = torch.tensor([0.5, 0.0, -0.5, 0.1])
    move_bias(bias, torch.tensor([4, 2, 9, 5]), gamma=0.25)  # the mean is 5
    assert bias.tolist() == pytest.approx([0.75, 0.25, -0.75, 0.1])


def test_matrices_decay_and_norms_do_not() -> None:
    """One step with no gradient at all changes a weight by its decay alone."""
    layout = build(VARIANTS["query latent, groups, MTP 2"].config(), Process(), torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in named_tensors(layout.part)}
    layout.optimizer.step(layout.optimizer.reduce().sqrt(), learning_rate=0.5)
    for name, tensor in named_tensors(layout.part):
        kept = 1.0 if name.endswith("norm.weight") else 0.95
        torch.testing.assert_close(tensor, before[name] * kept, rtol=1e-12, atol=0, msg=name)

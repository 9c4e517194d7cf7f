"""bfloat16: what is narrow, what is not, and that nothing is lost where sums are long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from parallel.expert import router
from parallel.expert.dispatch import AllToAllDispatcher, ExpertGroups
from parallel.expert.placement import ExpertPlacement
from parallel.expert.wire import PlainWire
from parallel.ops.cross_entropy import SOFTMAX, cross_entropy
from parallel.ops.groups import Groups
from parallel.ops.ops import Ops
from parallel.ops.precision import PRECISIONS
from parallel.ranks.process import Process
from parallel.reduce.gradients import make_gradients
from parallel.tape.passes import run
from parallel.tape.tape import Tape
from parallel.tape.weight_gradients import WeightGradients
from tests.distributed import run_world
from trainer.build.layout import build
from trainer.config.schema import (
    AttentionConfig,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    MTPConfig,
    PipelineConfig,
    PrecisionConfig,
    RunConfig,
)
from trainer.model.moe import MoE
from trainer.model.names import named_biases
from trainer.objective.pretraining import TOKENS
from trainer.recipe.progress import Progress
from trainer.run.step import Trainer

MICRO_BATCHES = 120
ROWS, WIDTH, OUT = 8, 16, 24
VOCABULARY = 61


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- gradients ----


def linear(ops: Ops, weight: Tensor, x: Tensor) -> Tensor:
    return ops.linear(x, weight)


def grouped(ops: Ops, weight: Tensor, x: Tensor) -> Tensor:
    ends = torch.tensor([3, 3, len(x)], dtype=torch.int32)
    return ops.grouped_linear(x, weight, Groups(ends, len(x)))


def embedded(ops: Ops, weight: Tensor, x: Tensor) -> Tensor:
    return ops.embedding((x[:, 0].float() * 10).long() % OUT, weight)


def routed(ops: Ops, weight: Tensor, x: Tensor) -> Tensor:
    return ops.accurate_linear(x, weight)


def norm(ops: Ops, weight: Tensor, x: Tensor) -> Tensor:
    return nn.functional.rms_norm(x, weight.shape, weight, 1e-6)


SHAPES = {grouped: (3, OUT // 3, WIDTH), norm: (WIDTH,)}


@pytest.mark.parametrize("use", [linear, grouped, embedded, routed, norm])
def test_gradients_of_many_micro_batches_are_summed_in_float32(
    use: Callable[[Ops, Tensor, Tensor], Tensor],
) -> None:
    """120 micro-batches in bfloat16 against their sum in float64, from the same operands: what is
    left is float32's rounding. Sums kept in bfloat16 are ten thousand times as far off."""
    ops = Ops(PRECISIONS["bfloat16"])
    weight = nn.Parameter(random(*SHAPES.get(use, (OUT, WIDTH))).bfloat16())
    wide_ops = Ops(PRECISIONS["float64"])
    wide = nn.Parameter(weight.detach().double())
    for parameter in (weight, wide):
        make_gradients({"w": parameter}, {"w": (0,)}, {}, 0)
    for n in range(MICRO_BATCHES):
        x = random(ROWS, WIDTH, seed=n).bfloat16()
        for on, by in ((weight, ops), (wide, wide_ops)):
            y = use(by, on, x.to(on.dtype).requires_grad_())
            y.backward(random(*y.shape, seed=-n).bfloat16().to(y.dtype))
            by.deferred.drain()
    assert weight.grad is not None and wide.grad is not None
    assert weight.grad.dtype == torch.float32
    off = (weight.grad.double() - wide.grad).abs().max() / wide.grad.abs().max()
    assert off < 1e-6


# ---- what stays wide ----


def config(precision: str = "bfloat16", expert: int = 1) -> Config:
    return Config(
        run=RunConfig(steps=4, seed=1),
        precision=PrecisionConfig(precision),
        mesh=MeshConfig(expert=expert),
        pipeline=PipelineConfig("1f1b", micro_batches=2),
        model=ModelConfig(
            vocab_size=VOCABULARY, layers=2, dense_layers=1, dim=16, dense_dim=24, init_std=0.2,
            attention=AttentionConfig(2, 12, 8, 6, 4, 6),
            moe=MoEConfig(experts=8, top_k=2, expert_dim=8, bias_gamma=0.001),
            mtp=MTPConfig(1, 0.3),
        ),
        data=DataConfig(sequence_length=6, global_batch=4),
    )  # fmt: skip


def test_the_router_the_rotation_and_the_losses_stay_in_float32() -> None:
    layout = build(config(), Process(), torch.device("cpu"))
    assert {p.dtype for p in layout.part.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in layout.part.buffers()} == {torch.float32}
    mlp = layout.part.layer(1).mlp
    assert isinstance(mlp, MoE)
    x_TD = random(12, 16).bfloat16()
    scores_TE, weights_TK, experts_TK = mlp.choose_experts(x_TD)
    hits_BE = router.sequence_hits(scores_TE.unsqueeze(0), 2)
    assert weights_TK.dtype == mlp.balance(scores_TE, hits_BE).dtype == torch.float32
    # Routing is that of the same numbers in float64, which a product in bfloat16 is not.
    wide = x_TD.double() @ mlp.gate.weight.double().t()
    scores = wide.sigmoid().gather(-1, experts_TK)
    torch.testing.assert_close(
        weights_TK.double(), scores / scores.sum(-1, keepdim=True), rtol=1e-6, atol=0
    )
    x_TD = random(12, 16).bfloat16().requires_grad_()
    target_T = torch.arange(12)
    head = layout.part.lm_head
    assert head.ops.cross_entropy(x_TD, head.weight, target_T).dtype == torch.float32


def test_a_router_bias_moves_by_gamma_exactly() -> None:
    """0.6 + 0.001 is 0.6 in bfloat16."""
    layout = build(config(), Process(), torch.device("cpu"))
    for _, bias in named_biases(layout.part):
        bias.fill_(0.6)
    tokens = torch.randint(0, VOCABULARY, (4, 8), generator=torch.Generator().manual_seed(2))
    Trainer(layout).step(Progress(), lambda m: {TOKENS: tokens[2 * m : 2 * m + 2]})
    moves = {round(float(m), 7) for _, b in named_biases(layout.part) for m in b.double() - 0.6}
    assert moves <= {-0.001, 0.0, 0.001} and len(moves) > 1


def numbers_of_many_experts(process: Process) -> float:
    """Send tokens to 1,024 experts on two ranks, each to the expert of its own number."""
    tape = Tape(training=False)
    groups = ExpertGroups(torch.distributed.group.WORLD, torch.distributed.group.WORLD)
    placement, cpu = ExpertPlacement.contiguous(1024, 2), torch.device("cpu")
    dispatcher = AllToAllDispatcher(groups, placement, cpu, PlainWire())
    experts_TK = torch.arange(1024).unsqueeze(1)
    route = run(dispatcher.route(tape, experts_TK))
    x_TD = torch.zeros(1024, 4, dtype=torch.bfloat16)
    received, _ = run(route.dispatch(tape, x_TD, torch.ones(1024, 1), x_TD))
    assert received.x.dtype == torch.bfloat16
    expected = torch.arange(512).repeat(2).unsqueeze(1)  # from each rank, numbered as here
    return float((received.experts_NK - expected).abs().max())


def test_the_numbers_of_many_experts_arrive_exactly() -> None:
    """bfloat16 has no 257."""
    assert run_world(2, numbers_of_many_experts) == [0.0, 0.0]


def losses(process: Process, of: Config) -> list[float]:
    layout = build(of, process, torch.device("cpu"))
    trainer = Trainer(layout)
    tokens = torch.randint(0, VOCABULARY, (4, 4, 8), generator=torch.Generator().manual_seed(2))
    seen = []
    for step in range(4):
        parts = tokens[step].chunk(layout.mesh.data)[layout.data_rank].split(layout.sequences)
        seen.append(trainer.step(Progress(step), lambda m, p=parts: {TOKENS: p[m]}).loss)
    return seen


def test_training_in_bfloat16_follows_float32_and_any_layout_follows_one_process() -> None:
    narrow, wide = (losses(Process(), config(p)) for p in ("bfloat16", "float32"))
    assert narrow != wide
    assert narrow == pytest.approx(wide, rel=5e-3)
    dualpipe = replace(
        config(expert=2),
        mesh=MeshConfig(pipeline=1, expert=2),
        pipeline=PipelineConfig("dualpipev", micro_batches=2),
    )
    for spread in run_world(2, losses, dualpipe):
        assert spread == pytest.approx(narrow, rel=5e-3)


def losses_of(ops: Ops, weight: Tensor, x: Tensor) -> Tensor:
    return ops.cross_entropy(x, weight, torch.arange(len(x)))


@pytest.mark.parametrize("use", [linear, grouped, embedded, losses_of])
def test_saved_tensors_may_be_moved_away(use: Callable[[Ops, Tensor, Tensor], Tensor]) -> None:
    """Under hooks that copy what is saved, gradients are the same, and no weight is copied."""
    ops, copied = Ops(), []

    def copy(tensor: Tensor) -> Tensor:
        copied.append(tensor.shape)
        return tensor.clone()

    def gradients(pack: Callable[[Tensor], Tensor]) -> tuple[Tensor | None, ...]:
        weight = nn.Parameter(random(*SHAPES.get(use, (OUT, WIDTH))))
        make_gradients({"w": weight}, {"w": (0,)}, {}, 0)
        x = random(ROWS, WIDTH).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed):
            loss = use(ops, weight, x).pow(2).sum()
        loss.backward()
        ops.deferred.drain()
        assert weight.grad is not None and weight.grad.any() and weight.shape not in copied
        return weight.grad, x.grad

    plain, moved = gradients(lambda tensor: tensor), gradients(copy)
    torch.testing.assert_close(moved, plain, rtol=0, atol=0)
    assert copied


# ---- cross-entropy ----


@pytest.mark.parametrize("chunk", [1, 3 * VOCABULARY, 10**6], ids=["one", "uneven", "whole"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_cross_entropy_in_chunks_is_that_of_torch(dtype: torch.dtype, chunk: int) -> None:
    """Loss, input gradient and weight gradient, which waits for its turn; -1 is no target."""
    x, weight = random(10, WIDTH).to(dtype), nn.Parameter(random(VOCABULARY, WIDTH).to(dtype))
    make_gradients({"w": weight}, {"w": (0,)}, {}, 0)
    target = torch.arange(10) * 7 % VOCABULARY
    target[[2, 9]] = -1
    deferred = WeightGradients()
    ours = x.clone().requires_grad_()
    loss = cross_entropy(ours, weight, target, deferred, replace(SOFTMAX, chunk=chunk))
    (loss * 0.3).backward()
    assert weight.grad is not None and not weight.grad.any()
    deferred.drain()

    wide, matrix = (t.detach().double().requires_grad_() for t in (x, weight))
    logits = nn.functional.linear(wide, matrix)
    expected = nn.functional.cross_entropy(logits, target, ignore_index=-1, reduction="sum")
    (expected * 0.3).backward()
    within = 1e-12 if dtype == torch.float64 else 1e-2
    for mine, theirs in (
        (loss, expected), (ours.grad, wide.grad), (weight.grad, matrix.grad),
    ):  # fmt: skip
        assert (mine.double() - theirs).abs().max() <= within * theirs.abs().max()


def test_cross_entropy_in_an_evaluation_keeps_nothing() -> None:
    weight = random(VOCABULARY, WIDTH)
    loss = cross_entropy(random(4, WIDTH), weight, torch.arange(4), WeightGradients(), SOFTMAX)
    assert not loss.requires_grad

"""The seams of the trainer, each served by a second implementation.

Ops: every weight is multiplied by the object that the layers are given. Objective: another loss, on
other fields, trains the same under any layout. Placement: another table of experts changes no
number. Optimizer: what steps the weights can be exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parallel.expert.placement import ExpertPlacement, PlacementError
from parallel.ops.groups import Groups
from parallel.ops.ops import Linear, Operand, Ops
from parallel.ops.precision import PRECISIONS
from parallel.ranks.process import Process
from parallel.reduce.gradients import make_gradients
from parallel.tape.passes import Pass, run
from parallel.tape.tape import Tape
from parallel.tape.weight_gradients import WeightTiming
from tests.distributed import run_world
from trainer.build.layout import Layout, build
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
)
from trainer.model.moe import BALANCE
from trainer.model.names import initialise, named_tensors
from trainer.model.part import ModelPart
from trainer.model.partition import moe_layers, partition_layers
from trainer.model.stage import MicroBatch, ModelStage
from trainer.model.whole import whole_model
from trainer.objective.pretraining import LOSS, TOKENS, Pretraining
from trainer.recipe.progress import Progress
from trainer.recipe.recipe import StepRecipe
from trainer.run.step import Trainer

SEQUENCES, LENGTH, EXPERTS = 8, 6, 8
MODEL = ModelConfig(
    layers=4,
    dense_layers=1,
    dim=16,
    dense_dim=24,
    init_std=0.2,
    attention=AttentionConfig(2, 12, 8, 6, 4, 6),
    moe=MoEConfig(experts=EXPERTS, top_k=3, expert_dim=8, bias_gamma=0.05, balance_alpha=0.01),
    mtp=MTPConfig(1),
)


def config(
    schedule: str = "1f1b", pipeline: int = 1, expert: int = 1, micro_batches: int = 4
) -> Config:
    return Config(
        precision=PrecisionConfig("float64"),
        mesh=MeshConfig(pipeline=pipeline, expert=expert),
        pipeline=PipelineConfig(schedule, micro_batches=micro_batches),
        model=MODEL,
        data=DataConfig(sequence_length=LENGTH, global_batch=SEQUENCES),
    )


def tokens() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 257, (SEQUENCES, LENGTH + 2), generator=generator)


def step(layout: Layout, fields: Mapping[str, Tensor]) -> dict[str, Any]:
    """One step on `fields` of the whole global batch: what it reported, gradients and weights."""
    count = layout.config.pipeline.micro_batches
    mine = {k: v.chunk(layout.mesh.data)[layout.data_rank].chunk(count) for k, v in fields.items()}
    metrics = Trainer(layout).step(
        Progress(), lambda m: {name: part[m] for name, part in mine.items()}
    )
    held = {f"weight {n}": t.numpy() for n, t in named_tensors(layout.part)}
    held |= {f"gradient {n}": t.numpy() for n, t in named_tensors(layout.part, lambda p: p.grad)}
    return held | {"norm": metrics.gradient_norm, **metrics.losses}


def require_same(by_rank: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    for rank, result in enumerate(by_rank):
        for name, value in result.items():
            np.testing.assert_allclose(
                value, expected[name], rtol=1e-10, atol=1e-10, err_msg=f"{name} on rank {rank}"
            )


# ---- ops ----


@dataclass(frozen=True)
class CountingOps(Ops):
    """Notes which weights it multiplies with."""

    used: list[Tensor] = field(default_factory=list)

    def linear(self, x: Operand, weight: Tensor) -> Tensor:
        self.used.append(weight)
        return super().linear(x, weight)

    def accurate_linear(self, x: Tensor, weight: Tensor) -> Tensor:
        self.used.append(weight)
        return super().accurate_linear(x, weight)

    def embedding(self, tokens: Tensor, weight: Tensor) -> Tensor:
        self.used.append(weight)
        return super().embedding(tokens, weight)

    def grouped_linear(self, x_PI: Tensor, weight_EOI: Tensor, groups: Groups) -> Tensor:
        self.used.append(weight_EOI)
        return super().grouped_linear(x_PI, weight_EOI, groups)

    def swiglu_linear(
        self, gate_TI: Tensor, up_TI: Tensor, weight: Tensor, recompute: bool
    ) -> Tensor:
        self.used.append(weight)
        return super().swiglu_linear(gate_TI, up_TI, weight, recompute)

    def weighted_swiglu_linear(
        self,
        gate_up_P2I: Tensor,
        weight_P: Tensor,
        weight_EOI: Tensor,
        groups: Groups,
        recompute: bool,
    ) -> Tensor:
        self.used.append(weight_EOI)
        return super().weighted_swiglu_linear(gate_up_P2I, weight_P, weight_EOI, groups, recompute)

    def cross_entropy(self, x_TD: Tensor, weight_VD: Tensor, target_T: Tensor) -> Tensor:
        self.used.append(weight_VD)
        return super().cross_entropy(x_TD, weight_VD, target_T)


def test_every_weight_is_multiplied_by_the_ops_that_the_layers_were_given() -> None:
    """Another precision or kernel is another Ops: no layer goes around it, and each weight
    gradient, of every matrix of the model, comes by way of its queue."""
    ops = CountingOps(PRECISIONS["float64"])
    part = whole_model(MODEL, ops, LENGTH)
    initialise(part, 0, 0.2)
    parameters = dict(part.named_parameters())
    alone = dict.fromkeys(parameters, (0,))
    make_gradients(parameters, alone, {}, 0)
    partition = partition_layers(MODEL.layers, 1, MODEL.mtp.depth)
    objective = Pretraining(LENGTH, MODEL.mtp.depth)
    recipe = StepRecipe(SEQUENCES, 1, 0.0, 0.0, 0.0, 0.3)
    weights = {**objective.weights(recipe, objective.targets(SEQUENCES)), BALANCE: 0.01}
    tape = Tape(deferred=ops.deferred, loss_weights=weights)
    stage = ModelStage(0, part, partition, objective)
    tape.end(run(stage.forward(tape, tape.begin(), {TOKENS: tokens()})))

    matrices = {name for name, parameter in parameters.items() if parameter.ndim > 1}
    names = {id(parameter): name for name, parameter in parameters.items()}
    assert {names[id(weight)] for weight in ops.used} == matrices
    run(tape.backward(WeightTiming.LATER))
    assert not any(parameters[name].grad.any() for name in matrices)
    assert len(tape.weight_gradients) == len(ops.used) and not len(ops.deferred)
    tape.drain_weight_gradients()
    assert all(parameters[name].grad.any() for name in matrices)


def test_a_pass_that_nobody_runs_is_refused_by_its_name() -> None:
    """`yield from` forgotten in a layer: the message says which pass, and what to write."""
    part = whole_model(MODEL, Ops(PRECISIONS["float64"]), LENGTH)
    initialise(part, 0, 0.2)
    tape, x_TD = Tape(), torch.zeros(SEQUENCES * LENGTH, MODEL.dim, dtype=torch.float64)
    forgotten = part.layer(1)(tape, x_TD)
    with pytest.raises(TypeError, match=r"Layer\.forward is never run: write `yield from`"):
        tape.compute(torch.add, x_TD, forgotten)
    with pytest.raises(TypeError, match=r"Layer\.forward"):
        tape.end(part.layer(1)(tape, x_TD))


# ---- objective ----

ANSWER = "answer"


@dataclass(frozen=True)
class AnswersOnly:
    """The next token's loss where a mask says so: other fields, another number of targets."""

    varies = True

    @property
    def losses(self) -> tuple[str, ...]:
        return (LOSS,)

    @property
    def padding(self) -> Mapping[str, int]:
        return {TOKENS: 0, ANSWER: 0}

    def targets(self, sequences: int) -> Mapping[str, int]:
        raise AssertionError("they vary")

    def count(self, micro_batch: MicroBatch) -> dict[str, int]:
        return {LOSS: int(micro_batch[ANSWER][:, 1 : LENGTH + 1].sum())}

    def means(self, sums: Mapping[str, float], targets: Mapping[str, int]) -> dict[str, float]:
        return {LOSS: sums[LOSS] / targets[LOSS]}

    def weights(self, step: StepRecipe, targets: Mapping[str, int]) -> dict[str, float]:
        return {LOSS: 1.0 / targets[LOSS]}

    def places(self, micro_batch: MicroBatch) -> None:
        return None

    def tokens(self, micro_batch: MicroBatch) -> Tensor:
        return micro_batch[TOKENS][:, :LENGTH].flatten()

    def compute(
        self, tape: Tape, part: ModelPart, x_TD: Tensor, micro_batch: MicroBatch
    ) -> Pass[None]:
        hidden_TD = part.norm(x_TD)
        target_T = micro_batch[TOKENS][:, 1 : LENGTH + 1].flatten()
        mask_T = micro_batch[ANSWER][:, 1 : LENGTH + 1].flatten()
        tape.add_loss(LOSS, masked_loss(hidden_TD, target_T, mask_T, part.lm_head))
        yield from ()


def masked_loss(normed_TD: Tensor, target_T: Tensor, mask_T: Tensor, head: Linear) -> Tensor:
    losses_T = nn.functional.cross_entropy(head(normed_TD), target_T, reduction="none")
    return (losses_T * mask_T).sum()


def answers() -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 2, (SEQUENCES, LENGTH + 2), generator=generator)


def train_on_answers(process: Process, of: Config) -> dict[str, Any]:
    layout = replace(build(of, process, torch.device("cpu")), objective=AnswersOnly())
    result = step(layout, {TOKENS: tokens(), ANSWER: answers()})
    held_out = {TOKENS: tokens()[:3], ANSWER: answers()[:3]}
    return result | {"evaluation": Trainer(layout).evaluate(held_out)[LOSS]}


def test_another_objective_trains_the_same_under_any_layout() -> None:
    # Micro-batches of one sequence: nothing is padded here, and one of four sequences below.
    alone = train_on_answers(Process(), config(micro_batches=8))
    require_same(run_world(4, train_on_answers, config("dualpipe", 2, 2)), alone)
    plain = step(build(config(), Process(), torch.device("cpu")), {TOKENS: tokens()})
    assert abs(plain[LOSS] - alone[LOSS]) > 1e-3  # the mask does something


# ---- placement ----


def train_on_table(
    process: Process, of: Config, held: tuple[tuple[int, ...], ...]
) -> dict[str, Any]:
    placements = dict.fromkeys(moe_layers(MODEL), ExpertPlacement(held))
    layout = build(of, process, torch.device("cpu"), placements=placements)
    return step(layout, {TOKENS: tokens()})


def test_another_placement_of_experts_changes_no_number() -> None:
    alone = step(build(config(), Process(), torch.device("cpu")), {TOKENS: tokens()})
    dealt_out = tuple(tuple(range(rank, EXPERTS, 2))[::-1] for rank in range(2))
    results = run_world(2, train_on_table, config("dualpipev", 1, 2), dealt_out)
    require_same(results, alone)
    seven = "weight model.layers.2.mlp.experts.7.down_proj.weight"
    assert [seven in result for result in results] == [False, True]
    assert set().union(*results) == set(alone)


def test_experts_that_are_held_twice_are_not_trained() -> None:
    twice = ExpertPlacement(((*range(EXPERTS), 0),))
    with pytest.raises(PlacementError, match="more than once"):
        build(config(), Process(), torch.device("cpu"), placements={1: twice})


# ---- optimizer ----


@dataclass
class PlainSGD:
    """Weights minus learning rate x gradient, nothing clipped."""

    layout: Layout

    def zero(self) -> None:
        self.layout.gradients.zero()

    def reduce(self) -> Tensor:
        self.layout.gradients.reduce()
        return self.layout.gradients.square()

    @torch.no_grad()
    def step(self, norm: Tensor, learning_rate: float) -> None:
        for parameter in self.layout.part.parameters():
            parameter.sub_(learning_rate * parameter.grad)


def train_by(process: Process, of: Config, make: Callable[[Layout], PlainSGD]) -> dict[str, Any]:
    layout = build(of, process, torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in named_tensors(layout.part)}
    result = step(replace(layout, optimizer=make(layout)), {TOKENS: tokens()})
    rate = of.optimizer.lr / of.optimizer.warmup_steps
    for name, weight in before.items():
        expected = weight.numpy() - rate * result[f"gradient {name}"]
        np.testing.assert_allclose(result[f"weight {name}"], expected, rtol=0, atol=1e-14)
    return result


def test_another_optimizer_steps_the_weights() -> None:
    alone = train_by(Process(), config(), PlainSGD)
    require_same(run_world(2, train_by, config("dualpipev", 1, 2), PlainSGD), alone)

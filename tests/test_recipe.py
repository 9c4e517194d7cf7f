"""Recipes: what changes in the course of a run, and that it follows from the progress alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from parallel.ranks.process import Process
from parallel.schedule.generators import generate
from parallel.schedule.table_file import write_table
from tests.commands import ROOT, TINY, finish, start
from tests.distributed import run_world
from tests.test_equivalence import Case
from trainer.build.layout import build
from trainer.config.derived import mesh_of
from trainer.config.parse import config_parser, parse
from trainer.config.schema import (
    Config,
    DataConfig,
    OptimizerConfig,
    PipelineConfig,
    RecipeConfig,
    RunConfig,
)
from trainer.config.validate import validate
from trainer.errors import ConfigError
from trainer.model.names import named_biases, named_tensors
from trainer.model.size import parameter_counts
from trainer.objective.pretraining import TOKENS
from trainer.recipe.progress import Point, Progress
from trainer.recipe.recipe import Recipe, StepRecipe
from trainer.run.step import Trainer

V3 = "configs/deepseek_v3_2048.yaml"
LENGTH = 10  # tokens of a sequence


def config(steps: int = 100, tokens: int | None = None, **recipe: Any) -> Config:
    """Micro-batches of two sequences, all data ranks together; a batch of 16 if none is given."""
    batch = int(recipe.get("batch", ["16"])[-1])
    return Config(
        run=RunConfig(steps=steps, tokens=tokens),
        pipeline=PipelineConfig(micro_batches=batch // 2),
        data=DataConfig(sequence_length=LENGTH, global_batch=batch),
        recipe=RecipeConfig(**recipe),
    )


def simulated(recipe: Recipe) -> list[tuple[Progress, StepRecipe]]:
    """Every step of a run, one after the other."""
    steps, progress = [], Progress()
    while not recipe.finished(progress):
        steps.append((progress, recipe.at(progress)))
        progress = progress.after_step(steps[-1][1].sequences, LENGTH)
    assert progress == recipe.plan.end
    return steps


def rates(of: Config) -> list[float]:
    return [step.learning_rate for _, step in simulated(Recipe(of))]


# ---- values by hand ----


def test_the_default_learning_rate_warms_up_linearly_and_falls_as_a_cosine() -> None:
    made = replace(config(12), optimizer=OptimizerConfig(lr=8.0, min_lr_ratio=0.25, warmup_steps=4))
    found = rates(made)
    assert found[:4] == [2, 4, 6, 8]
    assert found[7] == pytest.approx(5)  # half of the way down from 8 to 2
    assert found[11] == 2
    assert all(a > b for a, b in pairwise(found[3:]))


def test_phases_in_steps_and_in_tokens_follow_each_other() -> None:
    """160 tokens in a step: the second phase ends with step 10, the fourth at the 20th."""
    phases = ["linear 0 to 1 until 4 steps", "1 until 1.6K tokens",
              "cosine 1 to 0.5 until 15 steps", "0.25 until 3_200 tokens",
              "linear 0.25 to 0.125"]  # fmt: skip
    found = rates(config(24, learning_rate=phases))
    assert found[:4] == [0.25, 0.5, 0.75, 1]
    assert found[4:10] == [1] * 6
    assert found[10:15] == [
        pytest.approx(0.75 + 0.25 * math.cos(math.pi * n / 5)) for n in range(1, 6)
    ]
    assert found[14] == 0.5 and found[15:20] == [0.25] * 5
    assert found[20:] == pytest.approx([0.25 - 0.125 * n / 4 for n in range(1, 5)])


def test_a_batch_goes_up_in_sizes_under_a_straight_line() -> None:
    """From 4 to 16 in 1,000 tokens: each size starts where the line has come to it."""
    recipe = Recipe(config(tokens=1500, batch=["linear 4 to 16 by 4 until 1K tokens", "16"]))
    assert recipe.micro_batches == [2, 4, 6, 8]
    for before, step in simulated(recipe):
        line = 4 + 12 * min(1.0, before.tokens / 1000)
        assert step.sequences == line // 4 * 4
        assert step.micro_batches == step.sequences // 2


def test_router_and_losses_switch_at_their_tokens() -> None:
    made = config(
        bias_gamma=["0.01 until 1K tokens", "0"],
        mtp_weight=["0.3 until 4 steps", "0.1"],
        balance_alpha=["0 until 5 steps", "linear 0 to 1 until 10 steps", "1"],
    )
    steps = [step for _, step in simulated(Recipe(made))]
    assert [step.bias_gamma for step in steps] == [0.01] * 7 + [0.0] * 93  # 160 tokens in a step
    assert [step.mtp_weight for step in steps] == [0.3] * 4 + [0.1] * 96
    assert [step.balance_alpha for step in steps[4:11]] == pytest.approx(
        [0, 0.2, 0.4, 0.6, 0.8, 1, 1]
    )


# ---- properties ----

NUMBERS = st.floats(0, 1).map(lambda number: round(number, 3))


@st.composite
def batches(draw: st.DrawFn) -> list[str]:
    """Ramps up and down, each of a few sizes, ending in tokens."""
    phases = []
    for end in sorted(draw(st.sets(st.integers(100, 5000), max_size=3))):
        by, count, least = (draw(st.integers(1, 4)) for _ in range(3))
        ends = [2 * least, 2 * (least + by * count)]
        first, last = ends[:: draw(st.sampled_from([1, -1]))]
        phases.append(f"linear {first} to {last} by {2 * by} until {end} tokens")
    return [*phases, str(2 * draw(st.integers(1, 8)))]


@st.composite
def rate_phases(draw: st.DrawFn) -> list[str]:
    """Continuous: each starts with the value that the one before has ended with."""
    values = draw(st.lists(NUMBERS, min_size=2, max_size=5))
    phases = []
    for n, (first, last) in enumerate(pairwise(values), start=1):
        shape = draw(st.sampled_from(["linear", "cosine"]))
        end = draw(st.sampled_from([f"{15 * n} steps", f"{1600 * n} tokens"]))
        phases.append(f"{shape} {first} to {last} until {end}")
    phases[-1] = phases[-1].split(" until ")[0]
    return phases


@st.composite
def recipes(draw: st.DrawFn) -> Config:
    batch = draw(batches())
    tokens = draw(st.none() | st.integers(1, 10_000))
    steps, rates = draw(st.integers(1, 100)), draw(rate_phases())
    made = config(steps, tokens, batch=batch, learning_rate=rates)
    try:
        Recipe(made)
    except ConfigError as error:
        assert "ends at" in str(error)  # steps and tokens do not follow each other
        assume(False)
    return made


@settings(max_examples=40, deadline=None)
@given(recipes())
def test_a_plan_is_what_the_steps_do_one_after_the_other(made: Config) -> None:
    """Sizes, steps and tokens, which are known without going through the steps, add up exactly."""
    plan, steps = Recipe(made).plan, simulated(Recipe(made))
    assert [before for before, _ in steps] == [plan.before_step(n) for n in range(len(steps))]
    assert plan.before_step(len(steps)) == plan.end == plan.before_step(10**9)
    assert plan.end.tokens == sum(step.sequences * LENGTH for _, step in steps)
    assert plan.end.sequences * LENGTH == plan.end.tokens
    if made.run.tokens is None:
        assert len(steps) == made.run.steps
    else:
        assert steps[-1][0].tokens < made.run.tokens <= plan.end.tokens
    sizes = dict.fromkeys(step.sequences for _, step in steps)
    assert [2 * count for count in Recipe(made).micro_batches] == list(sizes)
    for point in (Point(37, "steps"), Point(1001, "tokens")):
        ahead = (n for n, (before, _) in enumerate(steps) if point.reached(before))
        assert plan.first_step_at(point) == next(ahead, len(steps))


@settings(max_examples=25, deadline=None)
@given(recipes(), st.data())
def test_a_run_that_resumes_anywhere_has_the_rest_of_the_same_steps(
    made: Config, data: st.DataObject
) -> None:
    steps = simulated(Recipe(made))
    first = data.draw(st.integers(0, len(steps) - 1))
    again, progress = Recipe(made), steps[first][0]
    for before, step in steps[first:]:
        assert (progress, again.at(progress)) == (before, step)
        progress = progress.after_step(step.sequences, LENGTH)


@settings(max_examples=40, deadline=None)
@given(recipes())
def test_a_rate_without_jumps_has_none_and_goes_one_way_within_a_phase(made: Config) -> None:
    recipe = Recipe(made)
    steps, spans = simulated(recipe), recipe.curves["learning_rate"].spans
    for (before, one), (after, two) in pairwise(steps):
        end = after.after_step(two.sequences, LENGTH)
        rise = two.learning_rate - one.learning_rate
        room = 0.0  # how far the phases can move the rate in these two steps
        for span in spans:
            share = (end.count(span.end.unit) - before.count(span.end.unit)) / (
                max(1, span.end.count - span.start)
            )
            room += abs(span.phase.last - span.phase.first) * min(1, share * math.pi / 2)
        assert abs(rise) <= room + 1e-12
        running = [
            next((s for s in spans if not s.end.reached(p)), spans[-1]) for p in (before, after)
        ]
        if running[0] is running[1]:
            assert rise * (running[0].phase.last - running[0].phase.first) >= -1e-15


# ---- steps ----


def run_ramped(process: Process, case: Case, micro_batches: int) -> dict[str, Any]:
    """Three steps, of 8, 8 and 16 sequences, whose weights of the losses and gamma change."""
    made = case.config()
    made.run.steps, made.pipeline.micro_batches = 3, micro_batches
    made.recipe = RecipeConfig(
        batch=["8 until 2 steps", "16"],
        mtp_weight=["0.3 until 1 steps", "0.6"],
        balance_alpha=["0.01 until 2 steps", "0.05"],
        bias_gamma=["0.05 until 2 steps", "0"],
    )
    validate(made, process.world)
    layout = build(made, process, torch.device("cpu"))
    trainer, progress, losses = Trainer(layout), Progress(), []
    tokens = torch.randint(0, 257, (32, 8), generator=torch.Generator().manual_seed(3))
    held_out = {TOKENS: tokens[:5]}
    while not trainer.recipe.finished(progress):
        step = trainer.recipe.at(progress)
        batch = tokens[progress.sequences :][: step.sequences].chunk(layout.mesh.data)
        mine = batch[layout.data_rank].split(layout.sequences)
        assert len(mine) == step.micro_batches
        done = trainer.step(progress, lambda m, mine=mine: {TOKENS: mine[m]})
        losses += [done.loss, done.total_loss, done.balance, done.gradient_norm]
        mtp, balance = done.losses["mtp_1_loss"], done.balance * len(done.loads)
        total = done.loss + step.mtp_weight * mtp + step.balance_alpha * balance
        assert done.total_loss == pytest.approx(total, rel=1e-12)
        losses.append(trainer.evaluate(held_out)["loss"])
        progress = progress.after_step(step.sequences, 6)
    named = [*named_tensors(layout.part), *named_biases(layout.part)]
    return {"losses": np.array(losses)} | {n: t.detach().numpy().copy() for n, t in named}


def test_steps_of_a_ramp_are_the_same_under_any_layout() -> None:
    """Float64: the loss is a mean over the batch of its own step, in whatever micro-batches."""
    alone = run_ramped(Process(), Case("1f1b", (1, 1, 1), 1, False, False), 4)
    spread = Case("dualpipe", (2, 2, 1), 1, True, True)
    for result in run_world(4, run_ramped, spread, 8):
        for name, value in result.items():
            np.testing.assert_allclose(value, alone[name], rtol=0, atol=1e-10, err_msg=name)


# ---- DeepSeek-V3 ----


def test_the_config_of_deepseek_v3_has_the_schedule_of_the_paper() -> None:
    """arXiv 2412.19437, section 4.2: rate by steps and tokens, batch, gamma, MTP weight, length.

    "linearly increase it from 0 to 2.2e-4 during the first 2K steps. Then, we keep a constant
    learning rate of 2.2e-4 until the model consumes 10T training tokens. Subsequently, we gradually
    decay the learning rate to 2.2e-5 in 4.3T tokens, following a cosine decay curve. During the
    training of the final 500B tokens, we keep a constant learning rate of 2.2e-5 in the first 333B
    tokens, and switch to another constant learning rate of 7.3e-6 in the remaining 167B tokens."
    """
    made = parse(config_parser("test", "", ""), ["--config", str(ROOT / V3)])[0]
    recipe = Recipe(made)
    plan = recipe.plan

    def at(tokens: float) -> StepRecipe:
        return recipe.at(plan.before_step(plan.first_step_at(Point(int(tokens), "tokens"))))

    warm_up = [recipe.at(plan.before_step(n)).learning_rate for n in (0, 999, 1999, 2000)]
    assert warm_up == pytest.approx([1.1e-7, 1.1e-4, 2.2e-4, 2.2e-4])
    rates = {1e12: 2.2e-4, 9.99e12: 2.2e-4, 12.15e12: 1.21e-4, 14.31e12: 2.2e-5, 14.632e12: 2.2e-5,
             14.634e12: 7.3e-6, 14.799e12: 7.3e-6}  # fmt: skip
    assert [at(tokens).learning_rate for tokens in rates] == pytest.approx(
        list(rates.values()), rel=1e-4
    )
    # "gradually increased from 3072 to 15360 in the training of the first 469B tokens"
    sizes = [at(tokens).sequences for tokens in (0, 234e9, 468e9, 469.1e9, 14.7e12)]
    assert sizes[0] == 3072 and 3072 < sizes[1] < sizes[2] < 15360 == sizes[3] == sizes[4]
    # "0.001 for the first 14.3T tokens, and to 0.0 for the remaining 500B tokens", alpha 0.0001,
    # lambda "0.3 for the first 10T tokens, and to 0.1 for the remaining 4.8T tokens".
    assert [at(tokens).bias_gamma for tokens in (0, 14.2e12, 14.31e12)] == [0.001, 0.001, 0]
    assert [at(tokens).mtp_weight for tokens in (0, 9.9e12, 10.1e12)] == [0.3, 0.3, 0.1]
    assert {at(tokens).balance_alpha for tokens in (0, 1e13)} == {0.0001}
    assert 14.8e12 <= plan.end.tokens < 14.8e12 + 15360 * 4096
    # A constant batch of 15,360 would take 235,240 steps; the ramp adds to them.
    assert 235_240 < plan.end.step < 250_000
    assert parameter_counts(made.model)[0] == pytest.approx(671.026e9 + 11.61e9, rel=1e-3)


def test_the_schedule_is_printed_and_drawn_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    options = ("--config", str(ROOT / V3), "--print-schedule", "--picture", "made/v3.svg")
    code, out, err = finish(start(tmp_path, *options))
    assert (code, err) == (0, "") and (tmp_path / "made/v3.svg").read_text().startswith("<?xml")
    heading, *lines = out.splitlines()
    assert heading.split()[:2] == ["from", "step"] and max(map(len, lines)) <= 80
    assert lines[0].split() == ["0", "0", "1.1e-07", "to", "0.00022", "3,072", "0.001", "0.0001",
                                "0.3"]  # fmt: skip
    code, out, err = finish(start(tmp_path, *options[:3], "--json"))
    said = json.loads(out)
    assert f"{said['steps']:,} steps" in lines[-1] and f"{said['tokens']:,} tokens" in lines[-1]
    bounds = [(row["start_step"], row["end_step"]) for row in said["rows"]]
    assert bounds[0][0] == 0 and bounds[-1][1] == said["steps"]
    assert all(one[1] == two[0] for one, two in pairwise(bounds))
    for option in ("--json", "--picture=a.png"):
        code, out, err = finish(start(tmp_path, "--config", TINY, option))
        assert (code, len(err.splitlines())) == (2, 1) and "--print-schedule" in err


# ---- what cannot be ----


def problem(*arguments: str) -> str:
    """The line that a config ends with."""
    parsed = parse(config_parser("test", "", ""), ["--config", TINY, *arguments])[0]
    with pytest.raises(ConfigError) as caught:
        validate(parsed, mesh_of(parsed).world)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe.learning_rate", "[1e-3 until 5 epochs]"], ["learning_rate", "2000 steps"]),
        (["--recipe.learning_rate", "[]"], ["recipe.learning_rate", "no phase"]),
        (["--recipe.learning_rate", "[1e-3 until 5 steps]"], ["the last phase", "`until`"]),
        (["--recipe.learning_rate", "[1e-3, 1e-4]"], ["has no end", "until N tokens"]),
        (["--recipe.learning_rate", "[5000]"], ["from 0 to 1,000"]),
        (["--recipe.mtp_weight", "[1 until 1.5 steps, 2]"], ["'1 until 1.5 steps'", "whole"]),
        (["--recipe.mtp_weight", "[1 until 9 steps, 2 until 9 steps, 3]"], ["'2 until 9", "later"]),
        # 64 tokens in a step: 200 tokens are over after 4 steps.
        (["--run.steps", "9", "--recipe.mtp_weight", "[1 until 200 tokens, 2 until 4 steps, 3]"],
         ["ends at 4 steps", "before it ends at 4"]),
        (["--recipe.bias_gamma", "[0]", "--model.moe.score", "softmax", "--checkpoint.export_hf",
          "false"], ["recipe.bias_gamma", "null"]),
        (["--recipe.batch", "[4 until 5 steps, 8]"], ["data.global_batch = 4", "8"]),
        (["--recipe.batch", "[0 until 5 steps, 4]"], ["from 1 to"]),
        (["--recipe.batch", "[3 until 2 steps, 4]"], ["a batch of 3", "multiple", "2"]),
        (["--recipe.batch", "[linear 1 to 4 until 5 steps, 4]"], ["recipe.batch", "by 8"]),
        (["--recipe.batch", "[linear 1 to 4 by 2 until 5 steps, 4]"], ["divisor of 3"]),
        (["--recipe.batch", "[linear 4 to 400000 by 2 until 2 steps, 4]"], ["199998", "most 64"]),
        # DualPipe needs an even number of micro-batches, here of one sequence on two data ranks.
        (["--recipe.batch", "[2 until 2 steps, 4]", "--pipeline.schedule", "dualpipe",
          "--mesh.pipeline", "2"],
         ["a batch of 2 is 1 micro-batches", "dualpipe needs micro-batches to be even"]),
        (["--recipe.batch", "[8 until 2 steps, 4]", "--pipeline.schedule_file", "table.json"],
         ["pipeline.schedule_file has one table", "2 sizes"]),
    ],
)  # fmt: skip
def test_a_bad_recipe_is_one_line_that_names_the_key(
    arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(generate("dualpipev", 1, 2), tmp_path / "table.json")
    line = problem(*arguments)
    assert all(word in line for word in words), line


def test_a_run_that_is_cut_short_has_phases_that_it_never_comes_to() -> None:
    made = config(3, batch=["linear 4 to 16 by 2 until 10T tokens", "16"],
                  learning_rate=["1 until 9K steps", "0.5 until 20T tokens", "0.1"])  # fmt: skip
    assert rates(made) == [1, 1, 1] and Recipe(made).micro_batches == [2]

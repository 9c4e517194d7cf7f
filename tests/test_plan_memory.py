"""The plan's memory: against dry runs of whole steps, and against real ones."""

from __future__ import annotations

import pytest

from tests.planned_memory import CASES, case, measured, planned
from trainer.config.derived import mesh_of
from trainer.config.parse import config_parser, parse
from trainer.config.schema import Config
from trainer.dry.device import pretended_gpu
from trainer.dry.rank import dry_step
from trainer.plan.datasheets import machine_of
from trainer.plan.one_stage import StageKind
from trainer.plan.pass_memory import stage_memory
from trainer.plan.remedies import remedies
from trainer.plan.traffic import tokens_of_micro_batch

BY_NODE = (
    "--mesh.expert", "4", "--mesh.dispatch", "hierarchical", "--cluster.gpus_per_node", "2",
)  # fmt: skip


def config(*options: str) -> Config:
    """cpu_4proc.yaml, which has a layer of every kind and MTP, in bfloat16 and with options."""
    parser = config_parser("plan", "", "")
    given = ("--config", "configs/cpu_4proc.yaml", "--precision.parameters", "bfloat16", *options)
    return parse(parser, given)[0]


@pytest.mark.parametrize("recompute", [pytest.param("norm", marks=pytest.mark.slow), "layer"])
@pytest.mark.parametrize(
    "many",
    [
        StageKind(dense=0, experts=6, first=False, last=False),
        pytest.param(StageKind(1, 6, first=True, last=True), marks=pytest.mark.slow),
    ],
    ids=["middle", "all"],
)
def test_further_layers_add_what_the_third_of_four_adds(many: StageKind, recompute: str) -> None:
    here = config(f"--recompute.{recompute}", "true")
    lengthened = stage_memory(here, many)
    whole = stage_memory(here, many, run=many.experts)
    for kind, legs in whole.passes.items():
        assert len(legs) == len(lengthened.passes[kind])
        for leg, expected in zip(lengthened.passes[kind], legs):
            assert leg.peak == pytest.approx(expected.peak, rel=1e-3, abs=4096)
            assert leg.end == pytest.approx(expected.end, rel=1e-3, abs=4096)


def test_what_is_offloaded_is_not_on_the_gpu() -> None:
    """Of each layer with experts, its rows and the inputs of its SwiGLU, in bfloat16 or in fp8. A
    balanced rank gets as many pairs as its own tokens make."""
    kind = StageKind(dense=0, experts=2, first=False, last=False)
    for linear, per_number in (("same", 2.0), ("fp8", 1 + 4 / 128)):
        options = (
            "--run.device",
            "cuda",
            "--recompute.swiglu",
            "true",
            "--precision.linear",
            linear,
        )
        here, away = config(*options), config(*options, "--recompute.offload", "true")
        model, moe = here.model, here.model.moe
        pairs = tokens_of_micro_batch(here, mesh_of(here)) * moe.top_k
        numbers = pairs * (model.dim + 2 * moe.expert_dim) * kind.experts
        saved = stage_memory(here, kind).held - stage_memory(away, kind).held
        assert saved == pytest.approx(numbers * per_number, rel=0.01)


@pytest.mark.parametrize(
    "options",
    [
        ("--pipeline.schedule", "dualpipe", "--data.global_batch", "64"),
        pytest.param(
            ("--pipeline.schedule", "zbv", "--optimizer.name", "muon", "--optimizer.zero", "shard"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("--pipeline.schedule", "dualpipe", "--precision.linear", "fp8"),
            marks=pytest.mark.slow,
        ),
        pytest.param((*BY_NODE, "--data.global_batch", "64"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_as_a_dry_run_of_the_whole_step(options: tuple[str, ...]) -> None:
    here = config(*options, "--data.sequence_length", "512")
    for place, bytes_needed in enumerate(planned(here)):
        rank = place * here.mesh.expert * here.mesh.expert_data
        record = dry_step(here, rank, pretended_gpu())
        peak, before = sum(record.peak.values()), sum(record.start.values())
        assert peak > 2 * before  # of what is there all the time
        # A dry run keeps a few messages longer than a GPU: nobody says that they have arrived.
        assert bytes_needed == pytest.approx(peak, rel=0.03)


REAL = [
    name if name == "zbv, MTP, bfloat16, ZeRO" else pytest.param(name, marks=pytest.mark.slow)
    for name in CASES
]


@pytest.mark.parametrize("name", REAL)
def test_near_a_real_step(name: str) -> None:
    """Within 5 % where ranks keep step; where other work delays one, messages to it are kept for
    longer, up to 8 MB here."""
    here = case(name)
    assert planned(here) == pytest.approx(measured(here), rel=0.05, abs=9e6)


@pytest.mark.slow
def test_remedies_are_plans_that_need_less() -> None:
    here = config("--optimizer.zero", "off", "--plan.memory_margin", "0")
    enough = 0.9 * max(planned(here))
    here.cluster.memory_gib = enough / 2**30
    found = remedies(here, machine_of(here.cluster))
    assert found[0].fits and ("--optimizer.zero shard",) in [each.options for each in found]
    for each in found:
        options = [part for option in each.options for part in option.split()]
        assert max(planned(config("--optimizer.zero", "off", *options))) == each.total

"""The plan's memory: against dry runs of whole steps, and against real ones."""

from __future__ import annotations

import pytest

from trainer.config.derived import schedule_of
from trainer.config.parse import config_parser, parse
from trainer.config.schema import Config
from trainer.dry.device import pretended_gpu
from trainer.dry.rank import dry_step
from trainer.plan.datasheets import machine_of
from trainer.plan.memory import memory_by_rank
from trainer.plan.one_stage import StageKind
from trainer.plan.pass_memory import stage_memory


def config(*options: str) -> Config:
    """cpu_4proc.yaml, which has a layer of every kind and MTP, in bfloat16 and with options."""
    parser = config_parser("plan", "", "")
    given = ("--config", "configs/cpu_4proc.yaml", "--precision.parameters", "bfloat16", *options)
    return parse(parser, given)[0]


def needed(config: Config) -> list[int]:
    schedule, machine = schedule_of(config), machine_of(config.cluster)
    return [rank.needed for rank in memory_by_rank(config, schedule, machine)]


@pytest.mark.parametrize("recompute", ["norm", "layer"])
def test_further_layers_add_what_the_middle_one_of_three_adds(recompute: str) -> None:
    many = StageKind(dense=1, experts=5, first=True, last=True)
    here = config(f"--recompute.{recompute}", "true")
    lengthened = stage_memory(here, many)
    whole = stage_memory(here, many, run=many.experts)
    for kind, legs in whole.passes.items():
        assert len(legs) == len(lengthened.passes[kind])
        for leg, expected in zip(lengthened.passes[kind], legs):
            assert leg.peak == pytest.approx(expected.peak, rel=1e-3, abs=4096)
            assert leg.end == pytest.approx(expected.end, rel=1e-3, abs=4096)


@pytest.mark.parametrize(
    "options",
    [
        ("--pipeline.schedule", "dualpipe", "--recompute.layer", "true"),
        ("--pipeline.schedule", "zbv", "--optimizer.name", "muon", "--optimizer.zero", "shard"),
    ],
    ids=" ".join,
)
def test_as_a_dry_run_of_the_whole_step(options: tuple[str, ...]) -> None:
    here = config(*options)
    for place, bytes_needed in enumerate(needed(here)):
        rank = place * here.mesh.expert * here.mesh.expert_data
        record = dry_step(here, rank, pretended_gpu())
        assert bytes_needed == pytest.approx(sum(record.peak.values()), rel=0.02)

"""Steps that are measured while a run trains."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel.pipeline.executor import Executor
from parallel.ranks.process import Process
from parallel.study.timeline import Timeline
from parallel.tape.recorder import EventLog
from tests.distributed import run_world
from tests.test_metrics import Kept
from trainer.bench.throughput import random_parts
from trainer.build.layout import Layout, build
from trainer.config.schema import (
    Config,
    DataConfig,
    MeshConfig,
    MetricsConfig,
    ModelConfig,
    PipelineConfig,
    RunConfig,
)
from trainer.recipe.progress import Progress
from trainer.recipe.recipe import Recipe
from trainer.report.metrics import Metrics
from trainer.run import step_meter
from trainer.run.step_meter import StepMeter, peak_memory

ONLY_MEASURED = {
    "all_to_all_hidden", "all_to_all_hidden_transfer", "all_to_all_waited_seconds",
    "pipeline_waited_seconds", "pipeline_idle", "timeline",
}  # fmt: skip


def config() -> Config:
    return Config(
        run=RunConfig(steps=4),
        mesh=MeshConfig(pipeline=2, expert=2),
        pipeline=PipelineConfig(schedule="dualpipe", micro_batches=4),
        model=ModelConfig(layers=4, dense_layers=0, dim=32),
        data=DataConfig(sequence_length=16, global_batch=8),
        metrics=MetricsConfig(timeline_every=2, log_every=3),
    )


def run_step(layout: Layout, executor: Executor, meter: StepMeter, step: int) -> None:
    parts, per_flow = random_parts(layout, step), layout.schedule.micro_batches_per_flow
    layout.optimizer.zero()
    weights = layout.loss_weights(Recipe(layout.config).at(Progress()))
    with meter.step(step):
        executor.run(lambda flow, n: parts[flow * per_flow + n], weights)
    meter.record(step, last=step == 3)
    meter.metrics.end_step(step)


def measured_run(process: Process, folder: Path) -> dict[str, Any]:
    """Four steps, of which the second and the last are measured; the last cannot be drawn."""
    layout = build(config(), process, torch.device("cpu"))
    executor = layout.executor(layout.schedule, layout.objective, overlap=True)
    executor.recorder = flights = EventLog()  # of whoever records all the time
    idle = layout.executor(layout.schedule, layout.objective, overlap=False)
    sink, first = Kept(), process.rank == 0
    meter = StepMeter(layout, [idle, executor], Metrics([sink]), folder if first else None)
    if process.rank == 2:
        torch.ones(2**28, dtype=torch.uint8)
    before = peak_memory(torch.device("cpu"))
    noted, drawn = [], []

    def kept(timeline: Timeline, folder: Path, step: int) -> Path:
        drawn.append(timeline)
        if step == 3:
            raise OSError("no\nroom")
        return whole(timeline, folder, step)

    whole, step_meter._draw = step_meter._draw, kept
    with redirect_stderr(io.StringIO()) as said:
        for step in range(4):
            run_step(layout, executor, meter, step)
            flights.settle()
            noted.append(len(flights.events))
    assert executor.recorder is flights and executor.on_item is None
    items = [[span.item for span in timeline.by_rank[process.rank % 2]] for timeline in drawn]
    return {
        "before": before, "steps": sink.steps, "noted": noted, "said": said.getvalue(),
        "items": items,
        "start": [min(span.start for span in timeline.spans) for timeline in drawn],
        "program": list(layout.schedule.programs[layout.pipeline_rank]),
    }  # fmt: skip


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("run")
    return folder, run_world(4, measured_run, folder)


def test_due_steps_are_measured_and_the_others_are_not(
    ranks: tuple[Path, list[dict[str, Any]]],
) -> None:
    _, (first, *others) = ranks
    steps = [values for _, values in first["steps"]]
    assert [set(values) & ONLY_MEASURED for values in steps] == [
        set(), ONLY_MEASURED, set(), ONLY_MEASURED - {"timeline"},
    ]  # fmt: skip
    for values in (steps[1], steps[3]):
        assert 0 < values["pipeline_idle"] < 1 and values["all_to_all_waited_seconds"] > 0
        assert 0 <= values["all_to_all_hidden"] <= 1
    for other in others:
        assert not any(set(values) & ONLY_MEASURED for _, values in other["steps"])
    for rank in (first, *others):
        noted = rank["noted"]
        assert noted == [noted[0] * (n + 1) for n in range(4)], "the other recorder missed events"


def test_the_timeline_is_that_of_the_table_and_is_drawn(
    ranks: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, (first, *others) = ranks
    assert first["items"] == [first["program"]] * 2
    assert all(0 <= start < 0.5 for start in first["start"])
    path = folder / first["steps"][1][1]["timeline"]
    assert path == folder / "timelines/step-2.png" and path.read_bytes()[:4] == b"\x89PNG"
    trace = json.loads((folder / "timelines/step-2.trace.json").read_text())
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(slices) == 2 * len(first["program"])
    assert first["said"] == "metrics.timeline_every: no room; training on\n"
    assert {other["said"] for other in others} == {""}


def test_memory_is_that_of_the_rank_with_the_most(
    ranks: tuple[Path, list[dict[str, Any]]],
) -> None:
    recorded = [dict(values) for _, values in ranks[1][0]["steps"]]
    assert ["peak_memory_gib" in values for values in recorded] == [True, False, True, True]
    assert recorded[0]["peak_memory_rank"] == 2
    assert ranks[1][2]["before"] <= recorded[0]["peak_memory_gib"] * 2**30 < 2**34

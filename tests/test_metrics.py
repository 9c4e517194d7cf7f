"""Numbers of a run: how they are recorded, reduced and shown while it runs."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len

from trainer.config.schema import Config, MTPConfig, RunConfig
from trainer.recipe.recipe import StepRecipe
from trainer.report.console import RunConsole
from trainer.report.events import Event
from trainer.report.json_lines import FILE, JsonLines
from trainer.report.metrics import Metrics, Recorded, Values, Window
from trainer.report.run_log import read_run
from trainer.run.records import record_step, record_validation
from trainer.run.step import StepMetrics

ROOT = Path(__file__).parent.parent


WIDTH = 80


class Kept:
    """A sink that keeps all."""

    def __init__(self, said: str | None = None) -> None:
        self.steps: list[tuple[int, dict[str, Any]]] = []
        self.events: list[Event] = []
        self._said = said

    def event(self, event: Event) -> None:
        self.events.append(event)

    def write(self, step: int, values: Values) -> None:
        self.steps.append((step, {name: recorded.value for name, recorded in values.items()}))

    def close(self) -> str | None:
        return self._said


def step_metrics(scale: float = 1.0, depth: int = 1) -> StepMetrics:
    losses = {"loss": 5.5 * scale} | {f"mtp_{n + 1}_loss": 6.5 * scale for n in range(depth)}
    loads = {"layers.1": [1.0, 0.0, 3.0, 4.0], "layers.2": [2.0, 2.0, 2.0, 2.0]}
    recipe = StepRecipe(16, 2, 3e-4, 0.001, 1e-4, 0.3)
    return StepMetrics(losses, 7.0 * scale, 1.01, loads, 2.5 * scale, recipe, stop=False)


def config(steps: int = 100, log_every: int = 10, depth: int = 1) -> Config:
    c = Config(run=RunConfig(steps=steps))
    c.metrics.log_every, c.model.mtp = log_every, MTPConfig(depth)
    return c


# Recording


def test_every_sink_gets_every_value_of_a_step_once() -> None:
    sinks = [Kept(), Kept("in the cloud"), Kept()]
    metrics, c = Metrics(sinks), config()
    c.metrics.loads_every = 2
    for step in range(2):
        record_step(metrics, step, step_metrics(), seconds=0.5, c=c)
        if step:
            record_validation(metrics, loss=np.log(2.0), bytes_per_token=4.0)
            metrics.record("sample", "text", "last")
        metrics.end_step(step)
    metrics.end_step(2)
    metrics.event("spike", 1, "loss\n 9")
    assert metrics.close() == ["in the cloud"]
    tokens = c.data.global_batch * c.data.sequence_length
    first = {
        "loss": 5.5, "mtp_1_loss": 6.5, "total_loss": 7.0, "balance": 1.01, "load_max": 2.0,
        "load_unused": 0.125, "learning_rate": 3e-4, "bias_gamma": 0.001, "balance_alpha": 1e-4,
        "mtp_weight": 0.3, "sequences": 16, "gradient_norm": 2.5, "skipped": 0, "tokens": tokens,
        "tokens_per_second": 2 * tokens, "seconds": 0.5,
    }  # fmt: skip
    second = first | {
        "loads": [[0.125, 0.0, 0.375, 0.5], [0.25, 0.25, 0.25, 0.25]],
        "validation_loss": np.log(2.0), "validation_bits_per_byte": 0.25, "sample": "text",
    }  # fmt: skip
    for sink in sinks:
        assert sink.steps == [(0, first), (1, second), (2, {})]
        assert sink.events == [Event("spike", 1, "loss 9")]


def test_a_window_reduces_each_value_in_its_way() -> None:
    window = Window()
    for _ in range(2):  # the second time after it was emptied
        for number in (1.0, 4.0, 2.5):
            matrix = [[number, 0.0], [0.0, 2 * number]]
            window.add(
                {
                    "mean": Recorded(number, "mean"),
                    "sum": Recorded(int(number), "sum"),
                    "max": Recorded(number, "max"),
                    "last": Recorded(number, "last"),
                    "text": Recorded(f"at {number}", "last"),
                    "matrix": Recorded(matrix, "mean"),
                    "worst": Recorded(matrix, "max"),
                }
            )
        window.add({"mean": Recorded(2.5, "mean"), "once": Recorded(7.0, "mean")})
        assert window.reduced() == {
            "mean": 2.5, "sum": 7, "max": 4.0, "last": 2.5, "text": "at 2.5", "once": 7.0,
            "matrix": [[2.5, 0.0], [0.0, 5.0]], "worst": [[4.0, 0.0], [0.0, 8.0]],
        }  # fmt: skip
        window.empty()
        assert window.reduced() == {}


# metrics.jsonl


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_lines_and_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, said = JsonLines(tmp_path), []
    monkeypatch.setattr("builtins.print", lambda line, file: said.append(line))
    values = {"loss": Recorded(1.5, "mean"), "sample": Recorded("x" * 300, "last")}
    lines.write(0, values)
    with largest_file(500):
        for step in range(1, 100):
            lines.write(step, values)
    lines.write(100, values)  # there is room again
    lines.close()
    lines.close()
    assert said == [f"cannot write {tmp_path / FILE}: File too large; training on"]
    run = read_run(tmp_path)
    assert run.steps == 101 and run.series["loss"].steps[0] == 1
    assert run.skipped <= 1, "more than the line that was cut off is spoilt"


def loss(step: int) -> dict[str, Recorded]:
    return {"loss": Recorded(float(step), "mean")}


@pytest.mark.parametrize("ending", ["", '{"step": 7, "lo', "no line\n"])
@pytest.mark.parametrize("done", [0, 4, 7, 9])
def test_a_run_that_goes_on_has_each_step_once(tmp_path: Path, done: int, ending: str) -> None:
    lines = JsonLines(tmp_path)
    happened: list[Event] = []
    for step in range(7):
        if step in (2, 4, 5):
            happened.append(Event("spike" if step == 5 else "checkpoint_failed", step, "é"))
            lines.event(happened[-1])
        lines.write(step, loss(step))
    lines.close()
    with open(tmp_path / FILE, "a") as file:
        file.write(ending)
    lines = JsonLines(tmp_path, done)
    happened.append(Event("restart", done, "again"))
    lines.event(happened[-1])
    for step in range(done, 10):
        lines.write(step, loss(step))
    lines.close()
    rows = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    steps = [row["step"] for row in rows if "event" not in row]
    assert steps == [*range(min(7, done)), *range(done, 10)]
    run = read_run(tmp_path)
    assert run.series["loss"].values.tolist() == steps and run.skipped == 0
    assert list(run.events) == [e for e in happened if e.kind != "spike" or e.step < done]


def test_a_file_that_was_not_cut_is_read_as_if_it_had_been(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path)
    for step in (0, 1, 2, 3):
        lines.write(step, loss(step))
    lines.event(Event("spike", 3, "9"))
    lines.event(Event("rollback", 2, "to step 2"))
    for step in (2, 3):
        lines.write(step, {"loss": Recorded(10.0 + step, "mean")})
    lines.event(Event("restart", 1, "again"))
    lines.write(1, {"loss": Recorded(21.0, "mean")})
    lines.close()
    run = read_run(tmp_path)
    assert run.series["loss"].steps.tolist() == [1, 2] and run.steps == 2
    assert run.series["loss"].values.tolist() == [0.0, 21.0]
    assert [event.kind for event in run.events] == ["restart"]


# Reading a run


def test_rows_are_means_since_the_row_before_and_fit_80_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    c = config(steps=1_000_000, log_every=2, depth=2)
    console = RunConsole(c, quiet=False)
    console.start(["a run"])
    head = " ".join(capsys.readouterr().out.split())
    for word in ("loss", "mtp", "norm", "lr", "load max"):
        assert f"{word}: " in head
    metrics = Metrics([console])
    # The third step takes nine times as long as the second.
    for step, (scale, seconds) in enumerate([(1, 1.0), (1.5, 0.2), (0.5, 1.8), (1, 1.0)]):
        record_step(metrics, step, step_metrics(scale, depth=2), seconds, c)
        metrics.end_step(step)
    for step, scale in ((999_997, 1e9), (999_998, 1e9), (999_999, 1e9)):
        record_step(metrics, step, step_metrics(scale, depth=2), 1e-6, c)
        record_validation(metrics, 5.5, 1.0)
        metrics.record("sample", "wide 名" * 40 + "\n\x1b[31m[red]", "last")
        metrics.end_step(step)
    metrics.close()
    lines = capsys.readouterr().out.splitlines()
    tokens = c.data.global_batch * c.data.sequence_length
    columns = ["step", "loss", "mtp", "1", "mtp", "2", "norm", "lr", "load", "max", "tokens/s"]
    assert lines[0].split() == [*columns, "left"]
    first, second, third = (line.split() for line in lines[1:4])
    assert first[:8] == ["1", "5.5000", "6.5000", "6.5000", "2.50", "3.0e-04", "2.00x",
                         f"{tokens:,}"]  # fmt: skip
    assert second[:5] == ["2", "8.2500", "9.7500", "9.7500", "3.75"]
    assert third[:5] == ["4", "4.1250", "4.8750", "4.8750", "1.88"]
    assert third[7] == f"{2 * tokens / 2.8:,.0f}"
    rows = [line for line in lines if line.lstrip()[:1].isdigit()]
    assert len(rows) == 5 and {len(row) for row in rows} == {len(lines[0])}
    assert max(map(cell_len, lines)) <= WIDTH
    assert "  | \\x1b[31m[red]" in lines


# Imports


def test_a_run_imports_only_what_it_asks_for() -> None:
    unasked = {"wandb", "matplotlib", "tensorboard"}
    code = f"import sys, trainer.run.train; print({unasked} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"

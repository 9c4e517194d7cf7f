"""Weights & Biases as a sink, with a package that only stands in for it."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from trainer.config.schema import Config, MTPConfig, RunConfig
from trainer.errors import RunError
from trainer.report.metrics import Metrics, Recorded
from trainer.report.weights_and_biases import WeightsAndBiases


def config(steps: int = 100, log_every: int = 10, depth: int = 1) -> Config:
    c = Config(run=RunConfig(steps=steps))
    c.metrics.log_every, c.model.mtp = log_every, MTPConfig(depth)
    return c


# Recording


class FakeRun:
    """The library's run, as far as it is used."""

    def __init__(self, folder: str, fail: bool) -> None:
        self.dir, self.url = f"{folder}/wandb/offline-run-1/files", "https://wandb.example/run"
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self._fail, self.finished = fail, False

    def log(self, charts: dict[str, Any], step: int) -> None:
        if self._fail:
            raise ValueError("no\nspace")
        self.logged.append((step, charts))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None, origin="wandb.py")
    module.fail = False
    module.Settings = lambda **settings: SimpleNamespace(**settings)
    module.Html = lambda page: ("page", page)
    module.Histogram = lambda np_histogram: ("bins", *(part.tolist() for part in np_histogram))

    def init(dir: str, mode: str, **options: Any) -> FakeRun:
        module.options = options | {"mode": mode}
        module.run = FakeRun(dir, module.fail)
        return module.run

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_run_is_logged_and_its_end_says_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_wandb: Any, mode: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    sink = WeightsAndBiases(Path("my runs/a"), mode, "a", {"run": {"steps": 3}})
    metrics = Metrics([sink])
    metrics.record("loss", 1.5)
    metrics.record("loads", [[0.25, 0.75], [0.5, 0.5]])
    metrics.record("sample", "<b>&", "last")
    metrics.end_step(0)
    monkeypatch.chdir("/")  # what is said is for whoever started the run
    said = metrics.close()
    assert fake_wandb.run.finished and fake_wandb.options["mode"] == mode
    assert fake_wandb.options["name"] == "a" and fake_wandb.options["config"]["run"]["steps"] == 3
    charts = {
        "loss": 1.5, "sample": ("page", "<pre>&lt;b&gt;&amp;</pre>"),
        "loads/0": ("bins", [0.25, 0.75], [0, 1, 2]), "loads/1": ("bins", [0.5, 0.5], [0, 1, 2]),
    }  # fmt: skip
    assert fake_wandb.run.logged == [(0, charts)]
    assert said == {
        "offline": ["to send the run to Weights & Biases: wandb sync "
                    "'my runs/a/wandb/offline-run-1'"],
        "online": ["Weights & Biases: https://wandb.example/run"],
    }[mode]  # fmt: skip


def test_a_service_that_fails_costs_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fake_wandb: Any
) -> None:
    fake_wandb.fail = True
    sink = WeightsAndBiases(tmp_path, "offline", "a", {})
    for step in range(3):
        sink.write(step, {"loss": Recorded(1.0, "mean")})
    assert capsys.readouterr().err == "metrics.wandb: no space; training on\n"


def no_network(**options: Any) -> None:
    raise OSError("no\nnetwork")


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("missing", "pip install"),
        ("a folder of that name", "pip install"),
        ("does not start", r"did not start \(no network\): set it to offline or off"),
    ],
)
def test_a_service_that_cannot_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_wandb: Any, case: str, line: str
) -> None:
    specs = {"missing": None, "a folder of that name": ModuleSpec("wandb", None)}
    if case in specs:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: specs[case])
    fake_wandb.init = no_network
    with pytest.raises(RunError, match=rf"^metrics\.wandb: .*{line}") as caught:
        WeightsAndBiases(tmp_path, "online", "a", {})
    assert "\n" not in str(caught.value)

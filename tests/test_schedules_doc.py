"""docs/schedules.md: its figures, formulas, examples and pictures are what the tool gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from parallel.schedule.check import check
from parallel.schedule.generators import GENERATORS, generate
from parallel.schedule.table_file import read_table
from parallel.study.costs import CostModel, read_costs
from parallel.study.simulate import simulate

DOCS = Path(__file__).parent.parent / "docs"
TEXT = (DOCS / "schedules.md").read_text()


def code(language: str) -> str:
    """The one block of this language."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    return block


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_documented_figures_are_what_the_tool_says(name: str) -> None:
    (row,) = re.findall(rf"^\| {name} \| (.*) \|$", TEXT, re.MULTILINE)
    schedule = generate(name, 8, 32)
    runs = [
        simulate(schedule, CostModel(pair_factor=pair, hop=hop))
        for pair, hop in ((1.0, 0.0), (0.85, 0.0), (0.85, 0.05))
    ]
    figures = [f"{run.makespan:g}" for run in runs]
    figures.append(f"{runs[0].idle_fraction:.1%}".replace("%", " %"))
    assert row.split(" | ")[:5] == [*figures, f"{max(runs[0].peak_in_flight):g}"]


def test_documented_formulas_hold() -> None:
    ranks, f, w, b, fb = 8, 1, 1, 2, 3
    idle = {
        "gpipe": (ranks - 1) * (f + b),
        "1f1b": (ranks - 1) * (f + b),
        "interleaved": (ranks - 1) * (f + b) / 2,
        "zb-h1": (ranks - 1) * (f + b - 2 * w),
        "zb-h2": (ranks - 1) * f,
        "zbv": (ranks - 1) * f / 2,
        "dualpipe": (ranks / 2 - 1) * (fb + b - 3 * w),
        "dualpipev": (ranks - 1) * (fb + b - 3 * w) / 2,
    }
    assert idle.keys() == GENERATORS.keys()
    for name, time in idle.items():
        run = simulate(generate(name, ranks, 32), CostModel())
        assert sum(run.idle) / ranks == pytest.approx(time), name
        section = TEXT.split(f"\n### {name}\n")[1].split("\n###")[0]
        assert re.search(rf": {time:g}\b", section), name


def test_documented_examples_work(tmp_path: Path) -> None:
    module: dict = {}
    exec(code("python"), module)
    for ranks, micro_batches in (4, 8), (3, 7), (1, 2):
        report = check(module["waves"](ranks, micro_batches))
        assert max(report.peak_in_flight) == min(ranks, micro_batches)
    (makespan,) = re.findall(r"shows it: (\S+), where 1f1b takes 33", TEXT)
    assert simulate(module["waves"](4, 8), CostModel()).makespan == float(makespan)

    (tmp_path / "costs.yaml").write_text(code("yaml"))
    for name in ("dualpipe", "1f1b", "zb-h1"):
        assert simulate(generate(name, 4, 12), read_costs(tmp_path / "costs.yaml")).makespan > 0
    (tmp_path / "table.json").write_text(code("json"))
    table = read_table(tmp_path / "table.json")
    check(table)
    assert simulate(table, CostModel()).makespan == 6


def test_documented_gains_are_measured() -> None:
    def makespan(name: str, **costs: float | list[float]) -> str:
        return f"{simulate(generate(name, 8, 32), CostModel(**costs)).makespan:.1f}"

    text = " ".join(TEXT.split())
    last = {}
    for name in ("dualpipe", "dualpipev", "zbv", "1f1b"):
        share = generate(name, 8, 32).stage_share
        by_stage = [share] * round(8 / share - 1) + [share + 0.5]
        costs = dict.fromkeys(("forward", "input_grad", "weight_grad"), by_stage)
        last[name] = makespan(name, **costs, pair_factor=0.85)
    assert (
        f"dualpipe takes {last['dualpipe']}, dualpipev {last['dualpipev']}, zbv {last['zbv']} "
        f"and 1f1b {float(last['1f1b']):g}" in text
    )
    split = {"input_grad": 1.3, "weight_grad": 0.7}
    h2, h1 = makespan("zb-h2", **split), makespan("zb-h1", **split)
    assert f"W = 0.7 it takes {float(h2):g} and zb-h1 {h1}" in text
    best = float(makespan("zbv"))
    for name, factor in (("dualpipe", 0.96), ("dualpipev", 0.95)):
        assert float(makespan(name, pair_factor=factor)) < best
        assert float(makespan(name, pair_factor=factor + 0.01)) > best


def test_documented_pictures_are_there_and_small() -> None:
    pictures = re.findall(r"\]\((images/\S+)\)", TEXT)
    assert {f"images/schedule_{name}.svg" for name in GENERATORS} <= set(pictures)
    assert all((DOCS / picture).stat().st_size < 150_000 for picture in pictures)

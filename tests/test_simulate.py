"""The simulation, the picture and the command that prints and draws them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.schedule.generators import GENERATORS, forward_only, generate
from parallel.schedule.lower import inputs, lower, sent
from parallel.schedule.table import Schedule, ScheduleError, actions
from parallel.study.draw import save
from parallel.study.simulate import CostModel, Timeline, simulate
from tests.commands import simulate_command as command
from tests.schedule_strategies import QUICK, posted_at_use, schedules, with_program


@pytest.mark.parametrize(("hop", "makespan"), [(0.0, 90.85), (0.05, 94.45), (0.1, 98.55)])
def test_a_hop_has_no_slack(hop: float, makespan: float) -> None:
    timeline = simulate(generate("dualpipev", 8, 32), CostModel(pair_factor=0.85, hop=hop))
    assert timeline.makespan == pytest.approx(makespan, abs=1e-9)


def test_a_transfer_begins_when_it_is_sent_and_its_receive_is_posted() -> None:
    # GPipe on two ranks, receives posted only before use: every forward waits one whole hop.
    table = forward_only({(0, 0): 0, (0, 1): 1}, 3)
    costs = CostModel(forward=[1.0, 5.0], hop=2.0)
    assert simulate(posted_at_use(lower(table)), costs).makespan == 1 + 3 * (2 + 5)
    assert simulate(lower(table), costs).makespan == 1 + 2 + 3 * 5


def test_costs_by_stage() -> None:
    schedule = generate("1f1b", 2, 2)
    costs = CostModel(forward=[1, 2], input_grad=[3, 4], weight_grad=[5, 6])
    # By hand: F0 F1 on rank 0, F0 B0 F1 B1 on rank 1, then rank 0's B0 and B1.
    timeline = simulate(schedule, costs)
    assert timeline.makespan == 1 + 2 * (2 + 10) + 8
    assert timeline.idle == (33 - 18, 33 - 24)
    with pytest.raises(ScheduleError, match="costs: forward has 3 numbers for 2 stages"):
        simulate(schedule, CostModel(forward=[1, 2, 3]))


def test_simulation_refuses_a_deadlock() -> None:
    schedule = generate("1f1b", 2, 2)
    program = list(schedule.programs[0])[::-1]
    with pytest.raises(ScheduleError, match=r"^rank \d, position 0: .* waits forever"):
        simulate(with_program(schedule, 0, program), CostModel())


@QUICK
@given(schedules(), st.floats(0, 0.5))
def test_spans_follow_the_program_and_the_data(schedule: Schedule, hop: float) -> None:
    timeline = simulate(schedule, CostModel(pair_factor=0.85, hop=hop))
    assert [(s.rank, s.item) for s in timeline.spans] == [(r, i) for r, _, i in schedule.items()]
    made = {sent(schedule, a): span.end for span in timeline.spans for a in actions(span.item)}
    previous: dict[int, float] = {}
    for span in timeline.spans:
        assert span.start >= previous.get(span.rank, 0.0)
        previous[span.rank] = span.end
        for message in inputs(schedule, span.item):
            assert span.start >= made[message] + hop - 1e-9


# --- Picture and command ------------------------------------------------------------------------


def timeline(name: str = "dualpipe", ranks: int = 4, micro_batches: int = 8) -> Timeline:
    return simulate(generate(name, ranks, micro_batches), CostModel(pair_factor=0.85))


def test_a_picture_is_drawn_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("first", "second"):
        save(timeline(), tmp_path / f"{name}.svg", tmp_path / name / "picture.png")
    svg = (tmp_path / "first.svg").read_bytes()
    assert svg == (tmp_path / "second.svg").read_bytes()
    assert b"<svg" in svg and b"#fde3a7" in svg and b"#3d7fb8" in svg
    png = (tmp_path / "first" / "picture.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 10_000


@pytest.mark.parametrize("name", GENERATORS)
def test_every_schedule_can_be_drawn(name: str, tmp_path: Path) -> None:
    save(timeline(name, 2, 4), tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").stat().st_size > 5_000


def test_command_prints_json_and_writes_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.json"
    options = ["--ranks", "4", "--micro-batches", "8", "--pair-factor", "0.85"]
    code = command(
        "--schedule", "dualpipev", *options, "--compare", "all", "--json", "--table", str(table)
    )
    printed = json.loads(capsys.readouterr().out)
    assert code == 0
    assert set(printed) == set(GENERATORS)
    assert printed["dualpipev"]["makespan"] == pytest.approx(24.75)
    assert set(printed["gpipe"]) == {"makespan", "idle_fraction", "idle_by_rank", "peak_in_flight"}
    rows = json.loads(table.read_text())
    assert rows["rank0"][:2] == [["F", 0, 0, 0], ["F", 0, 0, 1]]
    assert ["FB", [0, 0, 7], [0, 7, 3]] in rows["rank0"]
    assert [len(rows[f"rank{r}"]) for r in range(4)] == [
        len(p) for p in generate("dualpipev", 4, 8).programs
    ]


def test_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        command(
            "--ranks",
            "3",
            "--micro-batches",
            "8",
            "--schedule",
            "1f1b",
            "--compare",
            "dualpipe,gpipe",
        )
        == 0
    )
    printed = capsys.readouterr()
    assert "1f1b" in printed.out and "gpipe" in printed.out
    assert "left out: dualpipe: needs --ranks to be even, got 3" in printed.err

"""The zero-bubble schedules and interleaved 1F1B: orders, idle time and memory as published."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.schedule.check import check
from parallel.schedule.generators import GENERATORS, generate
from parallel.schedule.generators.interleaved import interleaved
from parallel.schedule.table import Schedule, ScheduleError, actions
from parallel.study.simulate import CostModel, Timeline, simulate

QUICK = settings(max_examples=80, deadline=None)

# Published and recorded figures: schedule, cost of a pair over F + dI + dW, then for 8 ranks and 16
# micro-batches, 8 and 32, 16 and 32, 16 and 64: makespan, idle per cent, peak activations.
SIZES = ((8, 16), (8, 32), (16, 32), (16, 64))
FIGURES = [
    ("gpipe", 1.0, (69, 117, 141, 237), (30.4, 17.9, 31.9, 19.0), (16, 32, 32, 64)),
    ("1f1b", 1.0, (69, 117, 141, 237), (30.4, 17.9, 31.9, 19.0), (8, 8, 16, 16)),
    ("zb-h1", 1.0, (55, 103, 111, 207), (12.7, 6.8, 13.5, 7.2), (8, 8, 16, 16)),
    ("zbv", 1.0, (51.5, 99.5, 103.5, 199.5), (6.8, 3.5, 7.2, 3.8), (8, 8, 16, 16)),
    ("dualpipe", 1.0, (54, 102, 110, 206), (11.1, 5.9, 12.7, 6.8), (9, 9, 17, 17)),
    ("dualpipev", 1.0, (55, 103, 111, 207), (12.7, 6.8, 13.5, 7.2), (8.5, 8.5, 16.5, 16.5)),
    ("dualpipe", 0.85, (49.5, 90.3, 100.1, 181.7), (8.7, 4.8, 9.7, 5.3), (9, 9, 17, 17)),
    (
        "dualpipev",
        0.85,
        (50.05, 90.85, 100.65, 182.25),
        (9.7, 5.3, 10.1, 5.6),
        (8.5, 8.5, 16.5, 16.5),
    ),
]


@pytest.mark.parametrize(("name", "pair_factor", "makespans", "idle", "peaks"), FIGURES)
def test_simulation_agrees_with_published_and_recorded_figures(
    name: str, pair_factor: float, makespans: tuple, idle: tuple, peaks: tuple
) -> None:
    for (ranks, micro_batches), makespan, percent, peak in zip(SIZES, makespans, idle, peaks):
        schedule = generate(name, ranks, micro_batches)
        timeline = simulate(schedule, CostModel(pair_factor=pair_factor))
        assert timeline.makespan == pytest.approx(makespan, abs=1e-9)
        assert round(100 * timeline.idle_fraction, 1) == percent
        assert max(timeline.peak_in_flight) == peak
        assert check(schedule).peak_in_flight == timeline.peak_in_flight


def bubble(timeline: Timeline) -> float:
    """The idle time of the rank that idles most."""
    return max(timeline.idle)


@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 4), (2, 4), (4, 8), (6, 18), (8, 40)])
def test_published_formulas(ranks: int, micro_batches: int) -> None:
    """The bubbles of the DualPipe repository and of the papers; exact for F = dI = dW."""
    forward = weight_grad = 1.0
    backward = pair = 2.0
    pair += forward

    def idle(name: str) -> float:
        return bubble(simulate(generate(name, ranks, micro_batches), CostModel()))

    around = ranks - 1
    assert idle("1f1b") == around * (forward + backward)
    assert idle("gpipe") == around * (forward + backward)
    assert idle("zb-h1") == around * (forward + backward - 2 * weight_grad)
    if micro_batches % ranks == 0:
        assert idle("interleaved") == around * (forward + backward) / 2
    assert idle("dualpipev") == around * (pair + backward - 3 * weight_grad) / 2
    if ranks % 2 == 0:
        expected = (ranks / 2 - 1) * (pair + backward - 3 * weight_grad)
        assert idle("dualpipe") == expected


@pytest.mark.parametrize("forward", [0.8, 1.0, 1.5])
@pytest.mark.parametrize("input_grad", [1.0, 1.5])
def test_1f1b_and_interleaved_formulas_hold_for_any_costs(
    forward: float, input_grad: float
) -> None:
    costs = CostModel(forward=forward, input_grad=input_grad, weight_grad=0.7)
    whole = forward + input_grad + 0.7
    for ranks, micro_batches in ((4, 8), (8, 16)):
        for v in (1, 2, 3, 4):
            timeline = simulate(interleaved(ranks, micro_batches, v), costs)
            assert bubble(timeline) == pytest.approx((ranks - 1) * whole / v)
        assert bubble(simulate(generate("1f1b", ranks, micro_batches), costs)) == pytest.approx(
            (ranks - 1) * whole
        )


@QUICK
@given(st.sampled_from(["zb-h2", "zbv"]), st.integers(1, 7), st.integers(0, 9))
def test_no_bubble_but_the_fill(name: str, ranks: int, more: int) -> None:
    """With F = I = W no rank idles between its first item and its last, and the step takes the
    fill, one forward for each rank before the last, and then all of the work."""
    micro_batches = 2 * ranks - 1 + more
    timeline = simulate(generate(name, ranks, micro_batches), CostModel())
    fill = (ranks - 1) * timeline.schedule.stage_share
    assert timeline.makespan == pytest.approx(3 * micro_batches + fill)
    for rank, idle in enumerate(timeline.idle_by_cause):
        assert idle.dependency == idle.transfer == 0
        assert idle.warm_up == rank * timeline.schedule.stage_share
        assert idle.warm_up + idle.cool_down == pytest.approx(fill)


@QUICK
@given(st.integers(1, 7), st.integers(1, 30), st.floats(0.2, 3), st.floats(0.2, 3))
def test_zb_h1_is_never_slower_than_1f1b(ranks: int, m: int, forward: float, weight: float) -> None:
    costs = CostModel(forward=forward, weight_grad=weight)
    split = simulate(generate("zb-h1", ranks, m), costs)
    whole = simulate(generate("1f1b", ranks, m), costs)
    assert split.makespan <= whole.makespan + 1e-9
    assert max(split.peak_in_flight) == max(whole.peak_in_flight)


@pytest.mark.parametrize("name", ["zb-h1", "zb-h2", "zbv"])
def test_memory_is_the_same_on_every_rank(name: str) -> None:
    report = check(generate(name, 8, 24))
    assert set(report.peak_in_flight) == {15 if name == "zb-h2" else 8}


@pytest.mark.parametrize(("ranks", "v"), [(1, 3), (2, 1), (4, 2), (4, 3), (8, 4)])
def test_interleaved_memory_and_placement(ranks: int, v: int) -> None:
    schedule = interleaved(ranks, 3 * ranks, v)
    for rank in range(ranks):
        assert schedule.stages_of(rank) == [(0, rank + ranks * turn) for turn in range(v)]
    most = (2 * (ranks - 1) + 1 + ranks * (v - 1)) / v
    assert max(check(schedule).peak_in_flight) == pytest.approx(most)


def test_interleaved_order_by_hand() -> None:
    """The last rank of 4, with 8 micro-batches and stages a and b."""
    program = generate("interleaved", 4, 8).programs[3]
    text = " ".join(f"{a.kind}{a.micro_batch}{'ab'[a.stage // 4]}" for a in program)
    assert text == (
        "F0a F1a F2a F3a F0b B0b F1b B1b F2b B2b F3b B3b F4a B0a F5a B1a F6a B2a F7a B3a "
        "F4b B4b F5b B5b F6b B6b F7b B7b B4a B5a B6a B7a"
    )


def test_zero_bubble_orders_by_hand() -> None:
    def text(name: str, rank: int) -> str:
        program = generate(name, 2, 4).programs[rank]
        return " ".join(f"{a.kind}{a.micro_batch}" for a in program)

    assert text("zb-h1", 0) == "F0 F1 I0 W0 F2 I1 W1 F3 I2 W2 I3 W3"
    assert text("zb-h1", 1) == "F0 I0 F1 I1 W0 F2 I2 W1 F3 I3 W2 W3"
    assert text("zb-h2", 0) == "F0 F1 F2 I0 W0 F3 I1 W1 I2 W2 I3 W3"
    assert text("zb-h2", 1) == "F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3"


def test_zbv_order_by_hand() -> None:
    def text(rank: int) -> str:
        program = generate("zbv", 2, 3).programs[rank]
        return " ".join(f"{a.kind}{a.micro_batch}{'ab'[a.stage // 2]}" for a in program)

    assert text(0) == ("F0a F1a F2a F0b I0b W0b F1b I1b W1b I0a W0a F2b I2b W2b I1a W1a I2a W2a")
    assert text(1) == ("F0a F0b F1a F1b I0b W0b F2a I0a W0a F2b I1b W1b I1a I2b I2a W1a W2b W2a")


@QUICK
@given(st.sampled_from(["zb-h1", "zb-h2", "zbv"]), st.integers(1, 6), st.integers(1, 14))
def test_weights_are_always_split_off_and_in_order(name: str, ranks: int, m: int) -> None:
    schedule: Schedule = generate(name, ranks, m)
    for program in schedule.programs:
        for stage in {a.stage for item in program for a in actions(item)}:
            for kind in "FIW":
                own = [a.micro_batch for a in program if (a.kind, a.stage) == (kind, stage)]
                assert own == list(range(m))


def test_interleaved_refuses() -> None:
    with pytest.raises(ScheduleError) as refused:
        generate("interleaved", 4, 10)
    assert str(refused.value) == (
        "interleaved needs micro-batches to be a multiple of ranks = 4, got 10: "
        "set micro-batches to 12"
    )
    with pytest.raises(ScheduleError, match="at least 1 stage per rank, got 0"):
        interleaved(2, 2, 0)


def test_names() -> None:
    assert set(GENERATORS) >= {
        "gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2", "zbv", "dualpipe", "dualpipev",
    }  # fmt: skip
    for name in GENERATORS:
        assert generate(name, 2, 4).name == name

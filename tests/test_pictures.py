"""The pictures and the trace of a timeline: what is drawn is what ran."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from numpy import trapezoid

from parallel.schedule.check import check
from parallel.schedule.generators import GENERATORS, generate
from parallel.schedule.generators.interleaved import interleaved
from parallel.schedule.table import Overlap, Schedule, actions
from parallel.study.draw import _note, draw, save
from parallel.study.draw_rows import COLOURS, INK_ON, MEMORY_HEIGHT, TRANSFERS, cells
from parallel.study.simulate import CostModel, Timeline, simulate
from parallel.study.trace import write_trace
from tests.schedule_strategies import schedules

COSTS = CostModel(pair_factor=0.85, hop=0.1, optimizer=1.5, activation=3.0, pending_fraction=0.5)
NAMES = sorted(GENERATORS)


def timeline(name: str, ranks: int = 4, micro_batches: int = 8, **costs: float) -> Timeline:
    model = dataclasses.replace(COSTS, **costs)
    return simulate(generate(name, ranks, micro_batches), model)


@pytest.mark.parametrize("name", NAMES)
def test_cells_cover_what_ran(name: str) -> None:
    run = timeline(name, optimizer=0.0)
    covered = [0.0] * 4
    halves: dict[tuple[float, float], list[str]] = defaultdict(list)
    for cell in cells(run):
        rank = round(cell.top + cell.height / 2)
        full = cell.height > 0.5
        covered[rank] += cell.width * (1 if full else 0.5)
        if not full:
            halves[rank, cell.left].append(cell.action.kind)
    assert covered == pytest.approx([run.makespan - idle for idle in run.idle])
    pairs = sum(isinstance(span.item, Overlap) for span in run.spans)
    assert list(halves.values()) == [["F", "B"]] * pairs


@pytest.mark.parametrize("name", NAMES)
def test_every_action_has_its_number(name: str) -> None:
    run = timeline(name)
    axes = draw({"": run}).axes[0]
    half = run.schedule.micro_batches_per_flow
    done = [a for span in run.spans for a in actions(span.item)]
    numbers = Counter(str(a.flow * half + a.micro_batch) for a in done)
    assert Counter(text.get_text() for text in axes.texts) == numbers
    lines = [c for c in axes.collections if isinstance(c, LineCollection)]
    assert sum(len(c.get_segments()) for c in lines) == sum(a.stage > 3 for a in done)


def test_the_note_tells_a_way_back_from_a_deeper_stage() -> None:
    def note(schedule: Schedule) -> str:
        return _note(simulate(schedule, CostModel()))

    assert note(generate("1f1b", 4, 8)) == "numbers: micro-batches"
    assert note(generate("dualpipe", 4, 8)).endswith("4-7 enter at rank 3")
    assert "way back" in note(generate("zbv", 4, 8))
    assert "way back" in note(generate("dualpipev", 4, 8))
    assert note(generate("interleaved", 4, 8)).endswith("in the rank's second, deeper stage")
    assert note(interleaved(4, 8, 3)).endswith("a line for each earlier stage of the rank")


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_below_the_timeline(name: str) -> None:
    run = timeline(name)
    axes = draw({"": run}).axes[1]
    assert [float(text.get_text()) for text in axes.texts] == pytest.approx(list(run.peak_memory))
    for rank, patch in enumerate(axes.patches):
        times, heights = patch.get_path().vertices.T
        held = (rank + MEMORY_HEIGHT / 2 - heights) / MEMORY_HEIGHT * max(run.peak_memory)
        assert max(held) == pytest.approx(run.peak_memory[rank])
        # A step's outline is level from each time to the next, so its area is memory times time.
        steps = [*run.memory[rank], (run.makespan, 0.0)]
        area = sum(held * (end - start) for (start, held), (end, _) in pairwise(steps))
        assert abs(trapezoid(held, times)) == pytest.approx(area)


@pytest.mark.parametrize("name", NAMES)
def test_transfers_are_drawn_on_demand(name: str) -> None:
    run = timeline(name, hop=0.5)
    plain, rich = draw({"": run}).axes[0], draw({"": run}, transfers=True).axes[0]
    assert not {line.get_color() for line in plain.lines}
    lines = []
    for collection in rich.collections:
        colour = tuple(collection.get_edgecolor()[0][:3])
        if colour in [to_rgb(c) for c, _ in TRANSFERS.values()]:
            lines += collection.get_segments()
    assert len(lines) == check(run.schedule).messages
    expected = [(t.start, t.message.source, t.end, t.message.destination) for t in run.transfers]
    drawn = [(b, round(y), e, round(z)) for (b, y), (e, z) in lines]
    assert sorted(drawn) == sorted(expected)


def test_simulated_and_measured_are_on_one_scale(tmp_path: Path) -> None:
    run, slow = timeline("1f1b"), timeline("1f1b", forward=2.0)
    figure = draw({"simulated ": run, "measured ": slow})
    assert {axes.get_xlim() for axes in figure.axes} == {(0.0, slow.makespan)}
    top = [axes.get_position().y0 for axes in figure.axes]
    assert len(top) == 4 and top == sorted(top, reverse=True)
    titles = [text.get_text().split(":")[0] for text in figure.texts]
    assert titles[:2] == ["simulated 1f1b", "measured 1f1b"]
    save(run, tmp_path / "a.svg", measured=slow)
    save(run, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").stat().st_size > 1.5 * (tmp_path / "b.svg").stat().st_size


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_colours_hold_in_greyscale() -> None:
    order = [COLOURS[kind] for kind in "FIBW"]
    assert all(contrast(a, b) > 1.5 for a, b in pairwise(order))
    assert [luminance(c) for c in order] == sorted(map(luminance, order), reverse=True)
    assert all(contrast(COLOURS[kind], INK_ON[kind]) > 4 for kind in COLOURS)


# --- Trace --------------------------------------------------------------------------------------


def read_trace(path: Path) -> dict[str, list[dict]]:
    """The events of a trace by phase, each with the keys that its phase asks for."""
    trace = json.loads(path.read_text())
    keys = {
        "M": {"args"},
        "X": {"dur", "cat"},
        "s": {"id", "cat"},
        "f": {"id", "cat", "bp"},
        "C": {"args"},
    }
    events = defaultdict(list)
    for event in trace["traceEvents"]:
        assert keys[event["ph"]] | {"name", "pid", "ts"} <= event.keys()
        assert event["ph"] == "C" or "tid" in event
        events[event["ph"]].append(event)
    return events


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(schedules(), st.sampled_from([0.0, 0.3]))
def test_the_trace_says_what_ran(tmp_path: Path, schedule: Schedule, hop: float) -> None:
    run = simulate(schedule, dataclasses.replace(COSTS, hop=hop))
    write_trace({"simulated": run, "measured": run}, tmp_path / "trace.json")
    events = read_trace(tmp_path / "trace.json")

    slices = [e for e in events["X"] if e["pid"] == 0 and e["cat"] != "optimizer"]
    assert [e["tid"] for e in slices] == [s.rank for s in run.spans]
    assert [e["ts"] / 1e6 for e in slices] == pytest.approx([s.start for s in run.spans])
    ends_at = [(e["ts"] + e["dur"]) / 1e6 for e in slices]
    assert ends_at == pytest.approx([s.end for s in run.spans])
    assert len(events["X"]) == 2 * (len(run.spans) + len(run.optimizer))

    starts, ends = ({e["id"]: e for e in events[phase]} for phase in "sf")
    assert starts.keys() == ends.keys() and len(starts) == 2 * check(schedule).messages
    for number, start in starts.items():
        end = ends[number]
        assert start["pid"] == end["pid"] and start["tid"] != end["tid"]
        if start["pid"] == 0:
            assert inside(slices, start) and inside(slices, end)
            assert start["ts"] <= end["ts"]

    peaks: dict[str, float] = defaultdict(float)
    for event in events["C"]:
        peaks[event["name"]] = max(peaks[event["name"]], *event["args"].values())
    assert list(peaks.values()) == pytest.approx(list(run.peak_in_flight))


def inside(slices: list[dict], event: dict) -> bool:
    """Whether an arrow's end lies in a slice of its thread."""
    return any(
        s["tid"] == event["tid"] and s["ts"] <= event["ts"] < s["ts"] + s["dur"] for s in slices
    )

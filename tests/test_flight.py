"""The flight recorder: what a rank was last doing, whatever has become of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from parallel.errors import LostRankError
from parallel.ranks.flight import FlightRecorder, last_positions
from parallel.ranks.roll_call import RollCall
from parallel.tape.passes import Pass, run
from parallel.tape.tape import Tape
from parallel.tape.weight_gradients import WeightTiming
from tests.commands import ROOT
from tests.test_tape import ROWS, SHUFFLE, WIDTH
from trainer.errors import Stopped
from trainer.run.flight import flight_recorder

KILLED = """
import os, signal, sys
from pathlib import Path
from parallel.ranks.flight import FlightRecorder
recorder = FlightRecorder(Path(sys.argv[1]))
for step in range(100):
    recorder.phase(f"in step {step}")
    recorder.note(f"item 1 of 9: {'long ' * 100}")
    recorder.span("F", "wait", "dispatch", "layer 3")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_last_moves_of_a_killed_process_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "rank"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(file)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    positions = last_positions(file)
    assert [p.phase for p in positions[-4:]] == ["in step 98"] + ["in step 99"] * 3
    assert len(positions) == 64 and positions == sorted(positions, key=lambda p: p.since)
    last = positions[-1]
    assert (last.layer, last.move) == ("layer 3", "waiting for dispatch in F")
    assert last.item.startswith("item 1 of 9: long long")
    os.truncate(file, 1000)
    assert len(last_positions(file)) == 3
    assert last_positions(tmp_path / "none") == []


def test_a_backward_is_in_the_layers_of_its_forward(tmp_path: Path) -> None:
    def two_layers(tape: Tape, x: Tensor) -> Pass[Tensor]:
        for layer in range(2):
            tape.layer = f"layer {layer}"
            (x,) = yield from tape.exchange("out", SHUFFLE, x * x)
        return x

    recorder = FlightRecorder(tmp_path / "rank")
    tape, x = Tape(recorder=recorder), torch.ones(ROWS, WIDTH)
    y = tape.end(run(two_layers(tape, tape.begin(x))))
    tape.label = "B"
    run(tape.backward(WeightTiming.WHILE_IN_FLIGHT, torch.ones_like(y)))
    moves = [(p.layer, p.move) for p in last_positions(tmp_path / "rank")]
    out = ["starting out", "waiting for out"]
    after, start = "computing after out", "computing from the start"
    assert moves == [
        ("", f"{start} in F"),
        *((f"layer {layer}", f"{move} in F") for layer in (0, 1) for move in [*out, after]),
        ("layer 1", f"{after} in B"),
        *(("layer 1", f"{move} in B") for move in [*out, after]),
        *(("layer 0", f"{move} in B") for move in [*out, start]),
    ]


@pytest.mark.parametrize("error", [None, Stopped(15, ""), RuntimeError("gloo/ ended")])
def test_files_stay_only_where_a_run_does_not_end_well(
    tmp_path: Path, error: Exception | None, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, roll_call = tmp_path / "flight", RollCall(None, 0, 2)

    def end() -> None:
        with flight_recorder(folder, 0, 2, roll_call):
            roll_call.note("in step 17")
            if error is not None:
                raise error

    if error is None:
        end()
    else:
        with pytest.raises(type(error)):
            end()
    lost = isinstance(error, RuntimeError)
    assert folder.exists() == lost
    if not lost:
        return
    said = roll_call.report(LostRankError("rank 1 does not answer", True, [1]))
    err = capfd.readouterr().err.splitlines()
    assert "lost-1.json" in said and err[1].startswith("1 (lost)  ?") and "in step 17" in err[2]
    content = json.loads((folder / "lost-1.json").read_text())
    assert content["lost"] == [1] and content["ranks"]["0"][-1]["phase"] == "in step 17"
    with flight_recorder(folder, 0, 2, roll_call):  # the next start keeps what it finds
        assert "lost-2.json" in capfd.readouterr().err
    assert {file.name for file in folder.iterdir()} == {"lost-1.json", "lost-2.json"}


def test_what_cannot_be_recorded_does_not_end_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flight").write_text("in the way")
    with flight_recorder(tmp_path / "flight", 0, 1, RollCall(None, 0, 1)) as recorder:
        assert recorder is None
    assert "rank 0 keeps no flight record: " in capfd.readouterr().err
    recorder = FlightRecorder(tmp_path / "rank")
    os.close(recorder.handle)  # as a disk that fails
    recorder.phase("in step 1")
    assert recorder.failed

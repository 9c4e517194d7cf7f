"""Harm a run at random moments until it has had enough of it: each run must come back and end with
the weights of one that nobody has touched, bit for bit.

  python -m tests.long_faults --kills 100
  python -m tests.long_faults --minutes 600 --seed 7 --json

Every run is a small model on two processes, started in turn by launch/train.py and by torchrun.
What happens to it: SIGKILL, SIGSTOP or SIGTERM to a rank, SIGKILL or SIGTERM to what has started
the ranks, and a flipped bit in the newest checkpoint; most often while it trains, else at any
moment of its start. A run that has ended before its last step, as it does when its launcher is
killed, is started again by the same command. Exit code 1 if any run has not come back, has other
weights, or has left a process behind.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests.commands import ROOT, TINY, saved_weights
from trainer.run.exit import signals_as_exceptions
from trainer.run.status import read_status

STEPS = 200
OPTIONS = (
    "--config", TINY, "--checkpoint.every", "5", "--checkpoint.keep", "3",
    "--optimizer.zero", "shard", "--run.timeout", "8",
    "--run.io_timeout", "15", "--run.check_copies_every", "10", "--metrics.loads_every", "0",
)  # fmt: skip
LAUNCHERS = {
    "train.py": (sys.executable, str(ROOT / "launch/train.py"), "--run.restarts", "1000"),
    "torchrun": (
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "--max-restarts", "1000", str(ROOT / "launch/train.py"),
    ),
}  # fmt: skip
HARM = (
    *["SIGKILL a rank"] * 6, "SIGSTOP a rank", "SIGTERM a rank", "SIGKILL the launcher",
    "SIGTERM the launcher", "damage the newest checkpoint, SIGKILL a rank",
)  # fmt: skip
_GONE = 45.0  # seconds for ranks to end after their launcher; torchrun gives them 30
_STUCK = 240.0  # seconds without a step, a restart or an end


@dataclass
class Run:
    """A run that goes on, whatever happens to its processes."""

    folder: Path
    name: str
    launcher: str
    length: int
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    damaged: Path | None = None
    _moved: float = field(default_factory=time.monotonic)
    _seen: tuple[object, ...] = ()

    def place(self) -> Path:
        """Its folder; a start before there is a checkpoint makes the next of its name."""
        number = 2
        while (self.folder / f"runs/{self.name}-{number}").exists():
            number += 1
        last = f"{self.name}-{number - 1}" if number > 2 else self.name
        return self.folder / "runs" / last

    def start(self) -> None:
        self.starts += 1
        environment = {k: v for k, v in os.environ.items() if k not in {"RANK", "WORLD_SIZE"}}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with open(self.folder / f"{self.name}.log", "ab") as log:
            self.process = subprocess.Popen(
                [
                    *LAUNCHERS[self.launcher], *OPTIONS,
                    "--run.name", self.name, "--run.steps", str(self.length),
                ],
                cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def rows(self, kind: str) -> list[dict[str, object]]:
        """Events of a kind, or the steps."""
        found = []
        with suppress(FileNotFoundError):
            for line in (self.place() / "metrics.jsonl").read_text().splitlines():
                with suppress(ValueError):  # a line that is being written
                    row = json.loads(line)
                    found += [row] if row.get("event", "step") == kind else []
        return found

    def steps(self) -> int:
        return len(self.rows("step"))

    def ranks(self) -> list[int]:
        assert self.process is not None
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        with suppress(OSError):
            return [int(pid) for pid in path.read_text().split()]
        return []

    def is_finished(self) -> bool:
        """Whether it says so: from then on the same command makes another run."""
        status = read_status(self.place())
        return status is not None and status.finished

    def is_stuck(self) -> bool:
        seen = (self.place(), self.steps(), len(self.rows("restart")), self.starts)
        if seen != self._seen:
            self._seen, self._moved = seen, time.monotonic()
        return time.monotonic() - self._moved > _STUCK


@dataclass
class Report:
    """harm: how often, by kind. runs: that have ended with equal weights. starts: by the command
    itself, not by what it starts. lost: steps that had to be made again, by restart."""

    harm: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    starts: int = 0
    lost: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> dict[str, object]:
        lost = self.lost or [0]
        return {
            "kills": self.harm.total(),
            "by_kind": dict(self.harm),
            "runs_with_equal_weights": self.runs,
            "starts_by_hand": self.starts,
            "restarts": len(self.lost),
            "steps_lost": {"mean": sum(lost) / len(lost), "most": max(lost)},
            "problems": self.problems,
            "seconds": round(self.seconds, 1),
        }


class Chaos:
    """Harms runs of `length` steps, one after the other, in `folder`."""

    def __init__(self, folder: Path, seed: int, length: int = STEPS) -> None:
        self._folder, self._length = folder, length
        self._random, self.report = random.Random(seed), Report()
        self._start, self._now = time.monotonic(), Run(folder, "first", "train.py", length)
        self._expected: dict[str, torch.Tensor] = {}

    def go(self, kills: int | None, minutes: float | None) -> Report:
        try:
            self._undisturbed()
            self._start = time.monotonic()
            number = 0
            while not self.report.problems and not self._enough(kills, minutes):
                launcher = list(LAUNCHERS)[number % len(LAUNCHERS)]
                number += 1
                self._now = Run(self._folder, f"run{number}", launcher, self._length)
                self._disturb(kills, minutes)
        finally:
            self._end()
        self.report.seconds = time.monotonic() - self._start
        return self.report

    def _undisturbed(self) -> None:
        self._now.start()
        assert self._now.process is not None
        if self._now.process.wait() != 0:
            log = self._folder / "first.log"
            raise SystemExit(f"the undisturbed run fails, see {log}:\n{log.read_text()[-2000:]}")
        self._expected = saved_weights(self._now.place() / "weights")

    def _disturb(self, kills: int | None, minutes: float | None) -> None:
        """One run, to its end; no more harm once there has been enough."""
        run, restarts, before = self._now, 0, 0
        while True:
            if run.process is None or run.process.poll() is not None:
                if run.process is not None and run.is_finished():
                    break
                run.start()
            self._wait(run)
            events = run.rows("restart")
            self.report.lost += [max(0, before - int(str(e["step"]))) for e in events[restarts:]]
            restarts = len(events)
            if run.is_stuck():
                self.report.problems.append(f"{run.name} stands still: see {run.name}.log")
                return
            if run.process is not None and run.process.poll() is None:
                before = run.steps()
                if not self._enough(kills, minutes):
                    self._harm(run, kills)
            if self.report.problems:
                return
        self.report.starts += run.starts
        self._compare(run)

    def _wait(self, run: Run) -> None:
        """Until a random moment of the next steps, or now and then of the start."""
        if self._random.random() < 0.2:
            time.sleep(self._random.uniform(0.0, 6.0))
            return
        steps = self._random.randrange(1, 30)
        since, deadline = time.time(), time.monotonic() + 60.0
        first: int | None = None  # the first step of this start, once it goes on
        while time.monotonic() < deadline and run.process is not None:
            with suppress(OSError):
                if first is None and (run.place() / "metrics.jsonl").stat().st_mtime > since:
                    first = run.steps()
            if run.process.poll() is not None or (
                first is not None and run.steps() > first + steps
            ):
                break
            time.sleep(0.1)
        time.sleep(self._random.uniform(0.0, 0.5))

    def _harm(self, run: Run, kills: int | None) -> None:
        assert run.process is not None
        kind, ranks = self._random.choice(HARM), run.ranks()
        if not ranks or ("launcher" in kind and any(map(_is_stopped, ranks))):
            return  # only SIGKILL ends a stopped process, and nobody would be left to send it
        number = signal.SIGKILL
        if kind.startswith("damage") and not self._damage(run):
            return
        for name in ("SIGSTOP", "SIGTERM"):
            number = signal.Signals[name] if name in kind else number
        launcher = "launcher" in kind
        victim = run.process.pid if launcher else self._random.choice(ranks)
        with suppress(ProcessLookupError):
            os.kill(victim, number)
        self.report.harm[kind] += 1
        self._say(run, kind, kills)
        if launcher:
            self._require_gone(run, ranks)

    def _damage(self, run: Run) -> bool:
        """Flip a bit in the newest checkpoint, if there is one before it, too."""
        found = sorted((run.place() / "checkpoints").glob("step-*"))
        if len(found) < 2 or (run.damaged is not None and run.damaged.exists()):
            return False
        try:
            file = self._random.choice(sorted(found[-1].glob("*.safetensors")))
            with open(file, "r+b") as opened:
                opened.seek(-1 - self._random.randrange(1000), os.SEEK_END)
                byte = opened.read(1)[0]
                opened.seek(-1, os.SEEK_CUR)
                opened.write(bytes([byte ^ 1 << self._random.randrange(8)]))
        except (OSError, IndexError):  # it has been deleted meanwhile
            return False
        run.damaged = found[-1]
        return True

    def _require_gone(self, run: Run, ranks: Sequence[int]) -> None:
        assert run.process is not None
        deadline = time.monotonic() + _GONE
        while time.monotonic() < deadline:
            left = [pid for pid in ranks if Path(f"/proc/{pid}/cmdline").exists()]
            if not left and run.process.poll() is not None:
                return
            time.sleep(0.1)
        self.report.problems.append(f"{run.name}: processes {left} have outlived their launcher")

    def _compare(self, run: Run) -> None:
        found = saved_weights(run.place() / "weights")
        same = found.keys() == self._expected.keys() and all(
            torch.equal(found[name], self._expected[name]) for name in found
        )
        if same:
            self.report.runs += 1
        else:
            self.report.problems.append(f"{run.name} ends with other weights")

    def _enough(self, kills: int | None, minutes: float | None) -> bool:
        over = minutes is not None and time.monotonic() - self._start > 60 * minutes
        return over or (kills is not None and self.report.harm.total() >= kills)

    def _say(self, run: Run, kind: str, kills: int | None) -> None:
        done, passed = self.report.harm.total(), time.monotonic() - self._start
        left = f", {passed / done * (kills - done) / 60:.1f} min left" if kills else ""
        print(
            f"{done}{f' of {kills}' if kills else ''}: {run.name} by {run.launcher}, "
            f"step {run.steps()}: {kind}; {60 * done / passed:.1f} a minute{left}",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    def _end(self) -> None:
        process = self._now.process
        if process is not None and process.poll() is None:
            for pid in [*self._now.ranks(), process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def _is_stopped(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.long_faults", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--kills", type=int, help="how often to do harm (100 unless --minutes)")
    parser.add_argument("--minutes", type=float, help="for how long to do harm")
    parser.add_argument("--seed", type=int, default=0, help="seed of what happens when")
    parser.add_argument("--folder", type=Path, help="where to run, and leave the runs and logs")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    kills = 100 if given.kills is None and given.minutes is None else given.kills
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        with signals_as_exceptions():
            report = Chaos(folder, given.seed).go(kills, given.minutes)
        result = report.as_json()
    for key, value in {} if given.json else result.items():
        print(f"{key.replace('_', ' ')}: {value}")
    if given.json:
        print(json.dumps(result))
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())

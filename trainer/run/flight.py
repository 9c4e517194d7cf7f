"""What every rank was last doing, when one of them is lost: a table on stderr, and a JSON file in
the folder flight/ of the run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from parallel.errors import LostRankError, TandemError
from parallel.files.shown import printable
from parallel.ranks.flight import FlightRecorder, Position, last_positions
from parallel.ranks.roll_call import RollCall
from parallel.ranks.together import gather
from trainer.io.no_links import create
from trainer.run.exit import say

_PREFIX, _SUFFIX = "rank-", ".positions"
_TRIES = 100  # to remove the files of ranks that are only beginning, when all are told to stop
_MOST_ROWS = 32


@contextmanager
def flight_recorder(
    folder: Path, rank: int, world: int, roll_call: RollCall
) -> Iterator[FlightRecorder | None]:
    """This rank's recorder for as long as the run lasts: the roll call notes into it, and reports
    what is in those of all ranks. None where it cannot be written: the run goes on without.

    The files stay where a rank is lost, or ends as nobody has foreseen. Collective.
    """
    # Torch's own recorder of NCCL reads this when it writes.
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(folder.absolute() / "nccl-rank-"))
    flight, recorder = _Flight(folder, world), None
    try:
        if rank == 0:
            with _loud(rank):
                flight.prepare()
        gather(None)
        with _loud(rank):
            recorder = FlightRecorder(flight.file(rank))
        roll_call.recorder, roll_call.report = recorder, flight.report
        yield recorder
    except BaseException as error:
        if recorder is not None and recorder.failed:
            say(f"rank {rank} has kept no flight record to the end: {recorder.failed}")
        if isinstance(error, TandemError | KeyboardInterrupt | SystemExit) and rank == 0:
            flight.remove()
        raise
    if rank == 0:
        flight.remove()


@contextmanager
def _loud(rank: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        say(f"rank {rank} keeps no flight record: {error.strerror}; training on")


@dataclass(frozen=True)
class _Flight:
    """The recorders of all ranks of a run."""

    folder: Path
    world: int

    def file(self, rank: int) -> Path:
        return self.folder / f"{_PREFIX}{rank}{_SUFFIX}"

    def prepare(self) -> None:
        """Make the folder, and keep what ranks that did not end well have left. Raises OSError."""
        self.folder.mkdir(exist_ok=True)
        if any(self._files()):
            kept = self._write("the processes of an earlier start did not end well", [])
            say(f"what each rank of the start before was last doing is in {kept}")
            self._remove_files()

    def remove(self) -> None:
        """Remove the files, and the folder unless something is kept in it."""
        for _ in range(_TRIES):
            with suppress(OSError):
                self._remove_files()
                self.folder.rmdir()
            if not any(self._files()):  # else another rank has just begun its own
                return

    def report(self, error: LostRankError) -> str:
        """Print what every rank was last doing, those that are lost first, and write more of it to
        a file. What to add to the line that says who is lost."""
        ranks = [*error.lost, *(rank for rank in range(self.world) if rank not in error.lost)]
        rows: list[tuple[str, ...]] = [("rank", "phase", "item", "layer", "move", "for")]
        now = time.time()
        for rank in ranks[:_MOST_ROWS]:
            name = f"{rank}{' (lost)' * (rank in error.lost)}"
            positions = last_positions(self.file(rank))
            rows.append((name, *_cells(positions[-1], now)) if positions else (name, *"?????"))
        widths = [max(map(len, column)) for column in zip(*rows)]
        for row in rows:
            say("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        if len(ranks) > _MOST_ROWS:
            say(f"and {len(ranks) - _MOST_ROWS} more")
        try:
            where = str(self._write(str(error), error.lost))
        except OSError as failed:
            where = f"no file: {failed.filename}: {failed.strerror}"
        return f"; what every rank was doing is above, and more of it in {where}"

    def _write(self, why: str, lost: Sequence[int]) -> Path:
        """Write all that the recorders have to a new file, and wait until it is on the disk."""
        ranks = {
            file.name.removeprefix(_PREFIX).removesuffix(_SUFFIX): [
                asdict(position) for position in last_positions(file)
            ]
            for file in self._files()
        }
        content = {"why": why, "time": time.time(), "lost": list(lost), "ranks": ranks}
        for number in count(1):
            path = self.folder / f"lost-{number}.json"
            with suppress(FileExistsError):
                create(path, json.dumps(content, indent=1).encode())
                break
        return path

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"{_PREFIX}*{_SUFFIX}"), key=lambda f: (len(f.name), f))

    def _remove_files(self) -> None:
        for file in self._files():
            file.unlink(missing_ok=True)


def _cells(position: Position, now: float) -> tuple[str, ...]:
    texts = position.phase, position.item, position.layer, position.move
    return (*map(printable, texts), f"{max(0.0, now - position.since):.1f} s")

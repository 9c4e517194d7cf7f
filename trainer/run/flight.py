"""What every rank was last doing, when one of them is lost: a table on stderr, a JSON file in the
run folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from parallel.files.shown import printable
from parallel.ranks.flight import FlightRecorder, Position, flight_file, last_positions
from trainer.io.no_links import create
from trainer.run.exit import say

FLIGHT = "flight"  # in the run folder
_MOST_ROWS = 32
_NCCL_ENTRIES = "2000"


@dataclass(frozen=True)
class FlightFolder:
    """The flight recorders of all ranks of a run."""

    path: Path
    world: int

    def prepare(self) -> str | None:
        """On the first rank, before any starts to record: make the folder, and keep what ranks that
        did not end well have left. What there is to say of these, if anything. Raises OSError."""
        self.path.mkdir(exist_ok=True)
        if not any(self.path.glob("rank-*.flight")):
            return None
        kept = self._write("the processes of an earlier start have ended", [])
        for file in self.path.glob("rank-*.flight"):
            file.unlink()
        return f"what each rank of the start before was last doing: {kept}"

    def record(self, rank: int) -> FlightRecorder:
        """This rank's recorder. Raises OSError."""
        return FlightRecorder(flight_file(self.path, rank))

    def close(self) -> None:
        """The run has ended well: remove the folder if it tells nothing."""
        with suppress(OSError):
            self.path.rmdir()

    def last(self, rank: int) -> Position | None:
        positions = last_positions(flight_file(self.path, rank))
        return positions[-1] if positions else None

    def report(self, why: str, lost: Sequence[int]) -> str:
        """Print what every rank was last doing, those that are lost first, and write more of it to
        a JSON file. What to add to the line that says who is lost."""
        others = [rank for rank in range(self.world) if rank not in lost]
        ranks = [*lost, *others]
        rows = [("rank", "doing", "for")]
        now = time.time()
        for rank in ranks[:_MOST_ROWS]:
            last = self.last(rank)
            since = f"{now - last.since:.1f} s" if last else ""
            mark = " (lost)" if rank in lost else ""
            rows.append((f"{rank}{mark}", printable(str(last or "not known")), since))
        width = [max(len(row[column]) for row in rows) for column in range(2)]
        for rank, doing, since in rows:
            say(f"{rank:{width[0]}}  {doing:{width[1]}}  {since}".rstrip())
        if len(ranks) > _MOST_ROWS:
            say(f"and {len(ranks) - _MOST_ROWS} more ranks")
        try:
            return f"; what every rank was doing is above and in {self._write(why, lost)}"
        except OSError as error:
            return f"; what every rank was doing is above; cannot write it: {error.strerror}"

    def _write(self, why: str, lost: Sequence[int]) -> Path:
        """A new file with all that the recorders have."""
        found = {}
        for file in sorted(self.path.glob("rank-*.flight"), key=lambda file: (len(file.name), file)):
            rank = file.name.removeprefix("rank-").removesuffix(".flight")
            found[rank] = [asdict(position) for position in last_positions(file)]
        content = {"why": why, "when": time.time(), "lost": list(lost), "ranks": found}
        for number in count(1):
            path = self.path / f"lost-{number}.json"
            with suppress(FileExistsError):
                create(path, json.dumps(content, indent=1).encode())
                break
        return path


def record_nccl(folder: Path) -> None:
    """Have torch's own recorder of NCCL keep its entries, and write them here on a timeout. It reads
    the environment when it writes; what the person has set is left alone."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", _NCCL_ENTRIES)
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(folder.absolute() / "nccl-rank-"))

"""metrics.jsonl: one JSON object per step."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from trainer.errors import RunError
from trainer.report.metrics import Values

FILE = "metrics.jsonl"


class JsonLines:
    """A sink that writes each step as it comes."""

    def __init__(self, folder: Path) -> None:
        """Make the file, which must not be there yet. Raises RunError where that fails."""
        try:
            self._file = open(folder / FILE, "x")  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise RunError(f"run.dir: cannot write {folder / FILE}: {error.strerror}") from error
        self._warned = False

    def write(self, step: int, values: Values) -> None:
        """A file that cannot be written (a full disk) costs its lines, with a warning."""
        row = {"step": step} | {name: recorded.value for name, recorded in values.items()}
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()  # a run that dies keeps all steps that it finished
        except OSError as error:
            self._warn(error)

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            print(f"cannot write {self._file.name}: {error.strerror}; training on", file=sys.stderr)
        self._warned = True

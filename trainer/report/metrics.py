"""Where the numbers of a run go: metrics.jsonl always, Weights & Biases if asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from trainer.config.schema import Config
from trainer.errors import RunError
from trainer.run.step import StepMetrics

Row = dict[str, float | int]


def row(step: int, metrics: StepMetrics, tokens: int, seconds: float) -> Row:
    """One step as metrics.jsonl has it. tokens: of the global batch. seconds: the step took."""
    return {"step": step, **metrics.losses} | {
        "balance": metrics.balance,
        "load_max": metrics.load_max,
        "load_unused": metrics.load_unused,
        "learning_rate": metrics.learning_rate,
        "gradient_norm": metrics.gradient_norm,
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
    }


class MetricsLog:
    """Writes rows as they come; used on rank 0."""

    def __init__(self, folder: Path, config: Config, resolved: Mapping[str, Any]) -> None:
        """Raises RunError where the file cannot be made, or Weights & Biases not be started as
        metrics.wandb asks."""
        try:
            self._file = open(folder / "metrics.jsonl", "x")  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise RunError(f"run.dir: cannot write {folder}: {error.strerror}") from error
        self._warned = False
        self._wandb: Any = None
        if config.metrics.wandb != "off":
            self._wandb = _start_wandb(folder, config.metrics.wandb, folder.name, resolved)

    def write(self, values: Mapping[str, float | int]) -> None:
        """A file that cannot be written (a full disk) costs its lines, with a warning, and not the
        run."""
        try:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()  # a run that dies keeps all steps that it finished
        except OSError as error:
            self._warn(error)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=int(values["step"]))

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self._warn(error)
        if self._wandb is not None:
            self._wandb.finish()

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            print(f"cannot write {self._file.name}: {error.strerror}; training on", file=sys.stderr)
        self._warned = True


def _start_wandb(
    folder: Path, mode: Literal["offline", "online"], name: str, resolved: Mapping[str, Any]
) -> Any:
    import wandb  # slow to import, and off by default

    try:
        return wandb.init(
            project="tandem",
            name=name,
            dir=str(folder),
            mode=mode,
            config=dict(resolved),
            settings=wandb.Settings(silent=True, console="off"),
        )
    except Exception as error:
        raise RunError(
            f"metrics.wandb: Weights & Biases did not start ({error}): set it to offline or off"
        ) from error

"""Weights & Biases, which is imported only where a run asks for it."""

from __future__ import annotations

import html
import importlib.util
import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainer.errors import RunError
from trainer.report.events import KINDS, TROUBLE, Event, name_of
from trainer.report.metrics import Value, Values

_MOST_BINS = 512  # of a histogram, as the library limits them


def require_installed() -> None:
    """Raise RunError unless there is a package to import."""
    spec = importlib.util.find_spec("wandb")
    if spec is None or spec.origin is None:  # no origin: just a folder of that name
        raise RunError(
            "metrics.wandb: Weights & Biases is not installed: pip install 'wandb>=0.19', or set "
            "metrics.wandb to off"
        )


class WeightsAndBiases:
    """A sink that logs each step to a run of Weights & Biases."""

    def __init__(
        self,
        folder: Path,
        mode: Literal["offline", "online"],
        name: str,
        resolved: Mapping[str, Any],
    ) -> None:
        """Start a run with its files in `folder`. resolved: the config. Raises RunError."""
        require_installed()
        try:
            import wandb  # slow, and off by default

            self._wandb, self._mode, self._warned = wandb, mode, False
            self._happened: Counter[str] = Counter()
            self._run = wandb.init(
                project="tandem",
                name=name,
                dir=str(folder),
                mode=mode,
                config=dict(resolved),
                settings=wandb.Settings(silent=True, console="off"),
            )
            # Relative to where the run was started, as whoever reads it stands there.
            self._files = os.path.relpath(Path(self._run.dir).parent)
        except Exception as error:
            raise RunError(
                f"metrics.wandb: Weights & Biases did not start ({_one_line(error)}): set it to "
                "offline or off"
            ) from error

    def write(self, step: int, values: Values) -> None:
        """What the library cannot take costs the values of that step, with a warning."""
        try:
            charts: dict[str, Any] = {}
            for name, recorded in values.items():
                charts |= self._charts(name, recorded.value)
            self._run.log(charts, step=step)
        except Exception as error:  # the library promises no narrower type
            self._warn(error)

    def event(self, event: Event) -> None:
        """Count it, as a chart; trouble is an alert too, which the service mails to whom it may."""
        self._happened[event.kind] += 1
        counts = {f"events/{kind}": self._happened[kind] for kind in KINDS}
        try:
            self._run.log(counts, step=event.step)
            if event.kind in TROUBLE:
                self._run.alert(name_of(event.kind), event.line(), level="WARN")
        except Exception as error:
            self._warn(error)

    def close(self) -> str | None:
        """Where the run is, or its files and how to send them."""
        try:
            self._run.finish()
        except Exception as error:
            self._warn(error)
        if self._mode == "online":
            return f"Weights & Biases: {self._run.url}"
        return f"to send the run to Weights & Biases: wandb sync {shlex.quote(self._files)}"

    def _charts(self, name: str, value: Value) -> dict[str, Any]:
        """Text as a page, each row of a matrix as a histogram with a bin for each number."""
        if isinstance(value, str):
            return {name: self._wandb.Html(f"<pre>{html.escape(value)}</pre>")}
        if not isinstance(value, list):
            return {name: value}
        histogram = self._wandb.Histogram
        return {
            f"{name}/{index}": histogram(np_histogram=(np.array(row), np.arange(len(row) + 1)))
            for index, row in enumerate(value)
            if len(row) <= _MOST_BINS
        }

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            print(f"metrics.wandb: {_one_line(error)}; training on", file=sys.stderr)
        self._warned = True


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

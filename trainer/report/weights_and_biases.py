"""Weights & Biases, which is imported only where a run asks for it."""

from __future__ import annotations

import html
import importlib.util
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainer.errors import RunError
from trainer.report.events import TROUBLE, Event, name_of
from trainer.report.metrics import Value, Values
from trainer.report.wandb_identity import Identity, has_key

Mode = Literal["on", "offline", "online"]

_MOST_BINS = 512  # of a histogram, as the library limits them
_START_SECONDS, _FINISH_SECONDS = 30, 120  # that a service which does not answer can cost


def require_installed() -> None:
    """Raise RunError unless there is a package to import."""
    spec = importlib.util.find_spec("wandb")
    if spec is None or spec.origin is None:  # no origin: just a folder of that name
        raise RunError(
            "metrics.wandb: Weights & Biases is not installed: pip install 'wandb>=0.31', or set "
            "metrics.wandb to off"
        )


class WeightsAndBiases:
    """A sink that logs each step to a run of Weights & Biases.

    The library wants steps that only grow; charts are over the value "step", which after a rollback
    is that of the run again.
    """

    def __init__(
        self, folder: Path, mode: Mode, resolved: Mapping[str, Any], identity: Identity
    ) -> None:
        """Start or go on with a run, its files in `folder`. resolved: the config.

        mode on: online where a key is set, offline elsewhere. A service that does not answer makes
        it offline; a library that does not work at all costs all values, both with a warning.
        Raises RunError where the package is not installed, or online has no key.
        """
        require_installed()
        self._identity, self._folder, self._warned = identity, folder, False
        self._run: Any = None
        try:
            import wandb  # slow, and off by default

            self._wandb = wandb
            wandb.setup(settings=wandb.Settings(silent=True))
            key = has_key(wandb.setup().settings.base_url)
        except Exception as error:
            self._warn(error)
            return
        if mode == "online" and not key:
            raise RunError(
                "metrics.wandb: online needs a key, and none is set: run `wandb login`, set "
                "WANDB_API_KEY, or set metrics.wandb to offline"
            )
        ways: tuple[Literal["online", "offline"], ...] = ("online", "offline")
        for wanted in ways[mode == "offline" or not key :]:
            try:
                self._run = self._start(wanted, resolved)
                break
            except Exception as error:  # the library promises no narrower type
                kept = "; keeping its files offline" if wanted == "online" else ""
                print(f"metrics.wandb: {_one_line(error)}{kept}; training on", file=sys.stderr)
                self._let_go()

    def _start(self, mode: Literal["online", "offline"], resolved: Mapping[str, Any]) -> Any:
        run = self._wandb.init(
            project="tandem",
            name=self._folder.name,
            id=self._identity.id,
            resume="allow",
            dir=str(self._folder),
            mode=mode,
            config=dict(resolved),
            settings=self._wandb.Settings(
                silent=True,
                console="off",
                init_timeout=_START_SECONDS,
                login_timeout=_START_SECONDS,
                finish_timeout=_FINISH_SECONDS,
            ),
        )
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")
        self._identity.not_before(run.step)
        return run

    def _let_go(self) -> None:
        """End the library's own process, which holds on to a run that did not start."""
        try:
            self._wandb.teardown()
            self._wandb.setup(settings=self._wandb.Settings(silent=True))
        except Exception as error:
            self._warn(error)

    def write(self, step: int, values: Values) -> None:
        """What the library cannot take costs the values of that step, with a warning."""
        charts: dict[str, Any] = {}
        for name, recorded in values.items():
            charts |= self._charts(name, recorded.value)
        self._log(step, charts)

    def event(self, event: Event) -> None:
        """A point of a chart; trouble is an alert too, which the service sends to its user."""
        self._log(event.step, {f"events/{event.kind}": 1})
        if event.kind in TROUBLE and self._run is not None:
            try:
                self._run.alert(name_of(event.kind), event.line(), level="WARN")
            except Exception as error:
                self._warn(error)

    def close(self) -> str | None:
        """Where the run is, or its files and how to send them."""
        if self._run is None:
            return None
        try:
            self._run.finish()
        except Exception as error:
            self._warn(error)
        if not self._run.offline:
            return f"Weights & Biases: {self._run.url}"
        # Relative to where the run was started, as whoever reads it stands there.
        here = os.path.relpath(self._folder / "wandb")
        files = f"{shlex.quote(here)}/offline-run-*-{self._identity.id}"
        return f"to send the run to Weights & Biases: wandb sync {files}"

    def _log(self, step: int, charts: dict[str, Any]) -> None:
        if self._run is None:
            return
        try:
            self._run.log({"step": step + 1} | charts, step=self._identity.position(step))
        except Exception as error:
            self._warn(error)

    def _charts(self, name: str, value: Value) -> dict[str, Any]:
        """Text as a page, each row of a matrix as a histogram with a bin for each number."""
        if isinstance(value, Path):
            return {name: self._wandb.Image(str(self._folder / value))}
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

"""Steps that go wrong, because something is not finite, the loss is a spike, or copies differ: what
is done about them, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from trainer.build.layout import Layout
from trainer.build.training_text import Text
from trainer.config.schema import OptimizerConfig
from trainer.errors import CopiesDifferError, NonFiniteError, SpikeError
from trainer.guard.copies import check_copies
from trainer.guard.spikes import WINDOW, Spike, find_spike
from trainer.guard.suspect_data import write_suspect_data
from trainer.recipe.progress import Progress
from trainer.report.metrics import Metrics
from trainer.run.step import StepMetrics

Verdict: TypeAlias = Literal["go on", "roll back"]


@dataclass(frozen=True)
class Watch:
    """The same on every rank. run: gives the run folder, on the first rank only."""

    config: OptimizerConfig
    metrics: Metrics
    text: Text
    run: Callable[[], Path] | None

    def accepts(self, progress: Progress, loss: float) -> bool:
        """Whether the step after `progress`, with this loss, is to change the weights."""
        return self.config.spike == "ignore" or self._spike(progress, loss) is None

    def judge(
        self, before: Progress, after: Progress, done: StepMetrics
    ) -> tuple[Progress, Verdict]:
        """What a step means for those to come: `after` with its counts, and whether to roll back.

        Reports a step that went wrong, with its data. Raises NonFiniteError or SpikeError after the
        last of optimizer.skip_limit skipped steps in a row.
        """
        spike = None if done.not_finite else self._spike(before, done.loss)
        row = 0 if done.updated else before.skipped_in_a_row + 1
        taken = (*before.losses, done.loss)[-WINDOW:] if done.updated else before.losses
        after = replace(
            after,
            skipped=before.skipped + (not done.updated),
            skipped_in_a_row=row,
            spikes=before.spikes + (spike is not None),
            losses=taken,
        )
        if done.not_finite:
            self._report("skipped", before, after, done.not_finite)
        elif spike is not None:
            self._report("spike", before, after, str(spike))
        if row >= self.config.skip_limit:
            self._give_up(before, row, done.not_finite)
        roll_back = spike is not None and self.config.spike == "rollback"
        return after, "roll back" if roll_back else "go on"

    def rolled_back(self, before: Progress, loaded: Progress, path: Path) -> Progress:
        """The progress of a run whose state has been loaded from a checkpoint, since the step that
        led to `before` was a spike. Raises SpikeError after optimizer.skip_limit rollbacks to it.
        """
        rollbacks = before.rollbacks + 1
        if rollbacks - loaded.rollbacks > self.config.skip_limit:
            raise SpikeError(
                f"step {before.step}: the loss spikes after {self.config.skip_limit} rollbacks to "
                f"{path} too: lower optimizer.lr, or start from an earlier checkpoint with "
                "checkpoint.resume"
            )
        passed_over = before.position - loaded.sequences
        said = f"to {path}, and on with sequence {before.position} of the text"
        self.metrics.event("rollback", loaded.step, said)
        return replace(
            loaded,
            passed_over=passed_over,
            skipped=before.skipped,
            spikes=before.spikes,
            rollbacks=rollbacks,
        )

    def _spike(self, progress: Progress, loss: float) -> Spike | None:
        return find_spike(progress.losses, loss, self.config.spike_threshold)

    def _report(
        self, kind: Literal["skipped", "spike"], before: Progress, after: Progress, why: str
    ) -> None:
        done = "" if after.skipped == before.skipped else "; the step changes nothing"
        sequences = range(before.position, after.position)
        data = f"its data: sequences {sequences.start} to {sequences.stop - 1} of the text"
        if self.run is not None:
            source, tokenizer = self.text.sequences, self.text.tokenizer
            try:
                path = write_suspect_data(self.run(), after.step, why, sequences, source, tokenizer)
                data += f", see {path}"
            except OSError as error:
                data += f"; cannot write {error.filename}: {error.strerror}"
        self.metrics.event(kind, before.step, f"{why}{done}; {data}")

    def _give_up(self, before: Progress, row: int, not_finite: str) -> None:
        steps = f"step {before.step + 1}: " + f"the last of {row} skipped in a row: " * (row > 1)
        if not_finite:
            raise NonFiniteError(
                f"{steps}{not_finite}: lower optimizer.lr, or look at the data of this step; no "
                "weight was changed by it"
            )
        raise SpikeError(
            f"{steps}the loss stays far above that of earlier steps: lower optimizer.lr, raise "
            "optimizer.spike_threshold, or set optimizer.spike to rollback or ignore"
        )


def find_silent_errors(layout: Layout, metrics: Metrics, step: int) -> None:
    """After a step, counted from 0: report copies that differ, and raise CopiesDifferError on every
    rank if there are any. Collective."""
    try:
        check_copies(layout.part, layout.optimizer, layout.copies_of, layout.groups)
    except CopiesDifferError as error:
        metrics.event("copies_differ", step, str(error))
        raise CopiesDifferError(
            f"step {step + 1}: {error}: a rank has computed something wrong: start again to go on "
            "from the last checkpoint; if it is the same machine again, leave it out"
        ) from error

"""The loop: steps, evaluations, samples, and the weights at the end."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from parallel.ranks.roll_call import RollCall
from parallel.ranks.together import gather, together
from trainer.build.training_text import Text
from trainer.checkpoint.export import save_checkpoint
from trainer.checkpoint.hf.companions import Companions
from trainer.data.sequences import micro_batch
from trainer.errors import NonFiniteError, Stopped, TandemError, UnhealthyError
from trainer.model.stage import MicroBatch
from trainer.recipe.progress import Progress
from trainer.report.console import RunConsole
from trainer.report.metrics import Metrics
from trainer.report.picture import draw_own_run
from trainer.run.folder import AVERAGED, RunFolder
from trainer.run.records import record_epochs, record_step, record_validation
from trainer.run.sample import sample_text
from trainer.run.saving import Saving
from trainer.run.signals import StopRequest
from trainer.run.step import StepMetrics, Trainer
from trainer.run.step_meter import StepMeter
from trainer.run.watch import Verdict, Watch, find_silent_errors


@dataclass
class Loop:
    """All steps, evaluations and the final weights. folder, companions: on the first rank only.
    progress: where it starts, and while it runs where it is."""

    trainer: Trainer
    text: Text
    console: RunConsole
    stop: StopRequest
    folder: RunFolder | None
    metrics: Metrics
    companions: Companions | None
    roll_call: RollCall
    saving: Saving
    progress: Progress

    def run(self) -> None:
        """Train to the end, then draw the run; Stopped in between if asked to."""
        try:
            self._steps()
        except (Stopped, UnhealthyError):  # on all ranks
            self.saving.finish()
            self._draw()
            raise
        self.saving.finish()
        self._draw()

    def _steps(self) -> None:
        config, stop = self.trainer.layout.config, self.stop
        path = self.folder.path if self.folder is not None else None
        executors = [*self.trainer.executors.values()]
        meter = StepMeter(self.trainer.layout, executors, self.metrics, path)
        recipe = self.trainer.recipe
        stop.training()
        saved = loss = None
        while not recipe.finished(self.progress):
            step = self.progress.step
            start = time.perf_counter()
            self._note(f"in step {step + 1}")
            with meter.step(step):
                done, verdict = self._step()
            if done.stop:
                stop.reached()
            record_step(self.metrics, step, done, time.perf_counter() - start, config)
            record_epochs(self.metrics, self.text.sequences.epochs(self.progress.position))
            if verdict == "roll back":
                self.metrics.end_step(step)
                self._roll_back()
                continue
            last = recipe.finished(self.progress)
            self._check_copies(step, last)
            self.saving.after_step(self.progress, last)
            saved = self._save() if last else None  # first: an evaluation can be killed
            try:
                interrupted = False
                meter.record(step, last)
                if last or (_is_due(step, config.metrics.eval_every) and not done.stop):
                    loss = self._evaluate(step, saved)
                    interrupted = loss is None
                if _is_due(step, config.metrics.sample_every) and not (interrupted or done.stop):
                    self._sample(step)
            finally:  # the step's own values are kept however that ends
                self.metrics.end_step(step)
            if interrupted or (done.stop and not last):
                when = f"{'in the evaluation ' * interrupted}after step {step + 1}"
                stop.reached()
                self._note("saving a checkpoint")
                kept = self.saving.now(self.progress)
                why = f"stopped {when}; {kept}; {saved or self._save()}"
                raise Stopped(stop.signal or signal.SIGTERM, why)
        if saved is None:  # this start had nothing left to do but to end the run
            saved, loss = self._save(), self._evaluate(self.progress.step - 1, None)
        if (entropy := self.text.bigram_entropy()) is not None and loss is not None:
            self.console.say(_compared_with_bigrams(entropy, loss))
        self.console.say(saved or "")

    def _step(self) -> tuple[StepMetrics, Verdict]:
        """One step, and what it means for those to come."""
        before, watch, length = self.progress, self._watch, self.text.sequences.sequence_length
        accepts = partial(watch.accepts, before)
        with self._weights_saved():
            done = self.trainer.step(before, self._micro_batch, self.stop.asked, accepts)
            after = before.after_step(done.recipe.sequences, length)
            self.progress, verdict = watch.judge(before, after, done)
        return done, verdict

    @property
    def _watch(self) -> Watch:
        run = self.folder.place if self.folder is not None else None
        return Watch(self.trainer.layout.config.optimizer, self.metrics, self.text, run)

    def _roll_back(self) -> None:
        """Go back to the newest checkpoint, if there is one, and on with the text after that of the
        step that was just made."""
        self._note("rolling back")
        self.saving.finish()
        checkpoints = self.saving.checkpoints
        if checkpoints.all():
            loaded, watch = checkpoints.load(), self._watch
            with self._weights_saved():
                self.progress = watch.rolled_back(self.progress, loaded.progress, loaded.path)

    @contextmanager
    def _weights_saved(self) -> Iterator[None]:
        """Where training ends within since it goes wrong, on all ranks, the last good weights are
        saved, and the error says where."""
        try:
            yield
        except UnhealthyError as error:
            raise type(error)(f"{error}; {self._save_or_why_not()}") from error

    def _check_copies(self, step: int, last: bool) -> None:
        """Look for silent errors, where that is due: no checkpoint is to keep one."""
        layout, progress = self.trainer.layout, self.progress
        every = layout.config.run.check_copies_every
        saves = last or self.saving.checkpoints.is_due(progress.step)
        if not every or not (saves or _is_due(step, every)):
            return
        self._note(f"comparing the copies of the weights after step {step + 1}")
        find_silent_errors(layout, self.metrics, step)

    def _micro_batch(self, m: int) -> MicroBatch:
        """The m-th of this data rank in the step that comes next."""
        layout, first = self.trainer.layout, self.progress.position
        count = self.trainer.recipe.at(self.progress).micro_batches
        sequences, part = layout.sequences, layout.batch_part
        text = self.text
        return text.fields(micro_batch(text.sequences, first, sequences, part, m, count))

    def _evaluate(self, step: int, saved: str | None) -> float | None:
        """Record the validation loss; None if asked to stop before it is there. saved: where the
        weights are, if they are saved."""
        self._note(f"evaluating after step {step + 1}")
        losses = self._held_out_losses()
        if losses is None:
            return None
        for name, loss in losses.items():
            if not math.isfinite(loss):
                where, of = saved or self._save_or_why_not(), f" of {name}" * bool(name)
                raise NonFiniteError(f"step {step}: the validation loss{of} is {loss}; {where}")
        loss, size_of = self.text.mean(losses), self.text.bytes_per_token
        record_validation(self.metrics, loss, self.text.mean(size_of))
        for name in losses if len(losses) > 1 else ():
            record_validation(self.metrics, losses[name], size_of[name], name)
        return loss if self._evaluate_average() else None

    def _held_out_losses(self) -> dict[str, float] | None:
        """By source, nats per token; None if asked to stop before they are there."""
        losses = {}
        for source in self.text.sources:
            held_out = self.text.fields(source.held_out)
            means = self.trainer.evaluate(held_out, lambda: self.stop.asked)
            if means is None:
                return None
            losses[source.name] = means["loss"]
        return losses

    def _evaluate_average(self) -> bool:
        """Record the validation loss of the averaged weights, if there are any; whether it was not
        asked to stop meanwhile."""
        layout = self.trainer.layout
        if layout.average is None or not layout.config.metrics.eval_ema:
            return True
        with layout.average.as_weights():
            losses = self._held_out_losses()
        if losses is not None:
            self.metrics.record("validation_loss_ema", self.text.mean(losses), "last")
        return losses is not None

    def _sample(self, step: int) -> None:
        """Record a text that the model writes."""
        self._note(f"writing a sample after step {step + 1}")
        layout = self.trainer.layout
        c, asked = layout.config.metrics, lambda: self.stop.asked
        text = sample_text(layout, self.text.tokenizer, c.sample_prompt, c.sample_tokens, asked)
        self.metrics.record("sample", text, "last")

    def _draw(self) -> None:
        """Draw the run into its folder; the other ranks wait, since their exit would stop it."""
        folder, wanted = self.folder, self.trainer.layout.config.metrics.picture
        if wanted:
            together(lambda: self.console.say(draw_own_run(folder.path)) if folder else None)

    def _note(self, doing: str) -> None:
        if not self.stop.asked:  # the store may have gone with the process that asked
            self.roll_call.note(doing)

    def _save(self, failed: bool = False) -> str:
        """Save the weights, and say where. failed: those of a replaced run stay as well."""
        config = self.trainer.layout.config
        if not config.checkpoint.export_hf:
            return "no weights saved, as checkpoint.export_hf says"
        self.stop.reached()  # a signal from here on lets it finish
        self._note("saving weights")
        folder = self.folder
        place = together(lambda: folder.weights() if folder is not None else None)
        weights: Path = gather(place)[0]
        with self.console.bytes("saving weights") as progress:
            layout = self.trainer.layout
            save_checkpoint(layout, weights, self.companions, progress)
            if layout.average is not None and config.checkpoint.export_ema and not failed:
                with layout.average.as_weights():
                    averaged = weights.with_name(AVERAGED)
                    save_checkpoint(layout, averaged, self.companions, progress)
        said = folder.saved(keep_previous=failed) if folder is not None else ""
        return f"weights in {weights}{said}"

    def _save_or_why_not(self) -> str:
        """Save the weights of a run that has failed, and say where; or why they are not saved, as
        they may not be finite either: another error would hide the first."""
        try:
            return self._save(failed=True)
        except TandemError as error:
            return str(error)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and (step + 1) % every == 0


def _compared_with_bigrams(entropy: float, loss: float) -> str:
    verdict = "below" if loss < entropy else "not yet below"
    return f"byte-bigram model: {entropy:.4f} nats per byte; this model: {loss:.4f}, {verdict} it"

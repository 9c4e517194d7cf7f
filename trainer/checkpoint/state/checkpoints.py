"""The checkpoints of a run, on all its ranks: saving, finding and loading them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from parallel.ranks.groups import second_world
from parallel.ranks.together import PeerError, gather, together
from trainer.build.layout import Layout
from trainer.checkpoint.state.index import About, Index, read_about, read_index
from trainer.checkpoint.state.steps import CHECKPOINTS, PartialStep, checkpoints, name_of
from trainer.checkpoint.state.write import BackgroundWriter, Outcome, read_fragments
from trainer.config.same_run import changes, flat
from trainer.errors import CheckpointError, ConfigError
from trainer.model.names import BIAS, named_biases, released_name
from trainer.optim.average import KIND
from trainer.optim.state import Fragment
from trainer.recipe.progress import Progress

ROUTER_BIAS = "router_bias"
"""The kind of state that no optimizer has."""


@dataclass(frozen=True)
class Loaded:
    """What was loaded, and from where. damaged: newer checkpoints that could not be read, and
    why."""

    progress: Progress
    path: Path
    about: About
    damaged: list[tuple[Path, str]]


class Checkpoints:
    """Saves and loads the state of a layout. Every rank makes one, and calls each method together
    with the others, except where it says otherwise. first: whether this is the first.

    run: gives the run folder; it may change on the first rank. text: fingerprint of the training
    text. wandb: id of the run there.
    """

    def __init__(
        self,
        layout: Layout,
        run: Callable[[], Path],
        text: int,
        wandb: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._layout, self._run, self._text, self._wandb = layout, run, text, wandb
        self._config = layout.config.checkpoint
        self.first = layout.process.rank == 0
        self._group = second_world(layout.patience)
        self._writer = BackgroundWriter(layout.process.rank, self._group)
        self._last: int | None = None

    def is_due(self, step: int) -> bool:
        """Whether checkpoint.every asks for one after `step` steps; not collective."""
        every = self._config.every
        return every > 0 and step % every == 0

    def save(self, progress: Progress) -> bool:
        """Copy the state, once the one before is written, and start to write it; whether that was
        done, as it is not where the last one is of this very step."""
        self.wait()
        if progress.step == self._last:
            return False
        self._last = progress.step
        about = self._about(progress) if self.first else None

        def open_step() -> PartialStep:
            folder, c = self._run() / CHECKPOINTS, self._config
            return PartialStep(folder, progress.step, c.keep, c.keep_every)

        self._writer.start(progress.step, state_of(self._layout), open_step, about)
        return True

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until nothing is being written, or `seconds`; whether that is so. Not collective."""
        self._writer.wait(seconds)
        return not self._writer.busy()

    def written(self) -> tuple[int, int]:
        """(done, total) bytes of this rank, of what is being written; not collective."""
        return self._writer.written, self._writer.total

    def outcome(self) -> Outcome | None:
        """How the last save has ended, once it has; each is told once. Not collective."""
        outcome = self._writer.outcome()
        if outcome is not None and outcome.error is not None:
            self._last = None
        return outcome

    def path(self, step: int) -> Path:
        """Where the one of this step is; not collective."""
        return self._run() / CHECKPOINTS / name_of(step)

    def all(self) -> list[Path]:
        """Those of the run, the newest first."""
        folder = together(lambda: self._run() if self.first else None)
        found = [] if folder is None else list(checkpoints(folder / CHECKPOINTS).values())
        return gather(found)[0]

    def load(
        self,
        paths: Sequence[Path] | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Loaded:
        """Load the first of `paths` that can be read, or the newest of the run; all ranks load the
        same. progress(done, total): bytes that this rank has read.

        Raises CheckpointError where none can be read, ConfigError for one of another run; the state
        may then have changed in part.
        """
        self.wait()
        damaged: list[tuple[Path, str]] = []
        for path in self.all() if paths is None else paths:
            try:
                about, index = together(
                    lambda p=path: (read_about(p), read_index(p)),  # type: ignore[misc]
                    self._layout.patience,
                )
                self._require_same_run(path, about)
                self._read(path, about, index, progress)
            except (PeerError, CheckpointError) as error:
                damaged.append((path, str(error)))
                continue
            self._layout.optimizer.loaded(about.updates)
            self._last = about.step if paths is None else None
            names = {field.name for field in fields(Progress)}
            known = {name: value for name, value in about.progress.items() if name in names}
            return Loaded(Progress(**known), path, about, damaged)
        why = "; ".join(reason for _, reason in damaged) or "there is none"
        raise CheckpointError(f"no checkpoint can be loaded: {why}")

    def _about(self, progress: Progress) -> About:
        layout = self._layout
        updates = layout.optimizer.updates
        return About(asdict(progress), updates, flat(layout.config), self._text, self._wandb())

    def _require_same_run(self, path: Path, about: About) -> None:
        """Raise ConfigError for a checkpoint that this config does not go on with."""
        config, allowed = self._layout.config, self._config.allow_changes or ()
        lines = list(changes(about.config, config, allowed))
        if about.text != self._text and "data.path" not in allowed and "data" not in allowed:
            lines.append("data.path: the checkpoint was trained on another text")
        if lines:
            raise ConfigError(
                f"{path} is of another run: {'; '.join(lines)}: change that back, or name the keys "
                "in checkpoint.allow_changes if it is meant, or set checkpoint.resume to never for "
                "a new run"
            )

    def _read(
        self, path: Path, about: About, index: Index, progress: Callable[[int, int], None]
    ) -> None:
        # A kind of state that this config adds, where that is allowed, starts as in a new run.
        kinds = {key.partition("/")[0] for key in index.metadata.state_dict_metadata}
        changed = any(changes(about.config, self._layout.config, ()))
        wanted = [f for f in state_of(self._layout) if f.kind in kinds or not changed]
        done, total = 0, sum(fragment.values.nbytes for fragment in wanted)

        def read(count: int) -> None:
            nonlocal done
            progress(done := done + count, max(done, total))

        read_fragments(path, index, wanted, self._group, read)
        if self._layout.average is not None and KIND not in kinds:
            self._layout.average.restart()  # from the weights that were read


def state_of(layout: Layout) -> list[Fragment]:
    """All state of this rank that a run needs to go on: masters, the optimizer's, the average of
    the weights, router biases."""
    average = layout.average.state() if layout.average is not None else ()
    return [*layout.optimizer.state(), *average, *_router_biases(layout)]


def _router_biases(layout: Layout) -> Iterator[Fragment]:
    rank = layout.process.rank
    copies_of = {released_name(name): ranks for name, ranks in layout.copies_of.items()}
    for name, bias in named_biases(layout.part):
        # A bias has the copies of the router's weights beside it.
        saves = copies_of[name.replace(BIAS, "weight")][0] == rank
        yield Fragment(name, ROUTER_BIAS, 0, tuple(bias.shape), bias.view(-1), saves)

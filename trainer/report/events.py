"""What happens to a run beside its steps: restarts, skipped steps, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

EventKind: TypeAlias = Literal[
    "restart", "skipped", "spike", "rollback", "checkpoint", "checkpoint_failed", "copies_differ"
]
KINDS: tuple[EventKind, ...] = get_args(EventKind)
# From the step of these on, steps are computed anew: what was recorded of them before is void.
ANEW: tuple[EventKind, ...] = ("restart", "rollback")
# Events that stay where a restart computes their step anew; the others then happen again.
LASTING: tuple[EventKind, ...] = ("restart", "checkpoint_failed", "copies_differ")
# A person may have to do something about these.
TROUBLE: tuple[EventKind, ...] = (
    "skipped", "spike", "rollback", "checkpoint_failed", "copies_differ"
)  # fmt: skip

_NAMES: dict[EventKind, tuple[str, str]] = {
    "restart": ("restart", "restarts"),
    "skipped": ("skipped step", "skipped steps"),
    "spike": ("loss spike", "loss spikes"),
    "rollback": ("rollback", "rollbacks"),
    "checkpoint": ("checkpoint", "checkpoints"),
    "checkpoint_failed": ("failed checkpoint", "failed checkpoints"),
    "copies_differ": ("difference of copies", "differences of copies"),
}


@dataclass(frozen=True)
class Event:
    """Something that happened once.

    step: counted from 0, the one during or right after which it happened; of a restart and a
    rollback the first step that is computed anew. text: one line for a person.
    """

    kind: EventKind
    step: int
    text: str

    def line(self) -> str:
        """For a person, who counts steps from 1."""
        return f"step {self.step + 1}: {name_of(self.kind)}: {self.text}"


def name_of(kind: EventKind, count: int = 1) -> str:
    """How so many of a kind are called."""
    one, many = _NAMES[kind]
    return one if count == 1 else many

"""Which run of Weights & Biases a run folder is, over all its restarts; and whose."""

from __future__ import annotations

import json
import netrc
import os
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from trainer.io.no_links import create, remove

IDENTITY = Path("wandb", "run.json")  # in the run folder
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HOST = "api.wandb.ai"


@dataclass
class Identity:
    """id: the library's name of the run. shift: what is added to a step to make a position, which
    is what the library calls a step, and which never goes back."""

    folder: Path
    id: str
    shift: int = 0
    _next: int = field(default=0, init=False)  # the first step that this process logs
    _last: int = field(default=-1, init=False)  # position

    @staticmethod
    def of(folder: Path, done: int = 0, reached: int = 0, run_id: str | None = None) -> Identity:
        """That of the run folder, else with `run_id`, else new. done: steps that the run has when
        it goes on. reached: steps that it had when it stopped, some of which are computed anew."""
        known = _read(folder) or Identity(folder, run_id or uuid.uuid4().hex[:12])
        known._next = done
        known.not_before(reached + known.shift)
        known._save()
        return known

    def position(self, step: int) -> int:
        """Of a step, counted from 0: never smaller than the one before."""
        if step + self.shift < self._last:
            self.shift = self._last + 1 - step
            self._save()
        self._last = step + self.shift
        return self._last

    def not_before(self, position: int) -> None:
        """Nothing is logged before this position, which the service has reached already."""
        if self._next + self.shift < position:
            self.shift = position - self._next
            self._save()

    def _save(self) -> None:
        """A disk that cannot be written costs the identity of a later restart."""
        path = self.folder / IDENTITY
        part = path.with_name(f".{os.getpid()}.json")
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            remove(part)
            create(part, json.dumps({"id": self.id, "shift": self.shift}).encode())
            part.replace(path)


def has_key(server: str) -> bool:
    """Whether the library would find a key for `server`, a URL, without asking a person."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    places = [os.environ.get("NETRC") or "~/.netrc", "~/_netrc"]
    for place in map(os.path.expanduser, places):
        with suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError):
            known = netrc.netrc(place)
            # Without a default entry, which may be anyone's.
            return not known.hosts.keys().isdisjoint({urlsplit(server).netloc, _HOST})
    return False


def saved_id(folder: Path) -> str | None:
    """The library's name of the run in a run folder, where it has one: for its checkpoints."""
    identity = _read(folder)
    return None if identity is None else identity.id


def _read(folder: Path) -> Identity | None:
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        found = json.loads((folder / IDENTITY).read_bytes())
        name, shift = found["id"], found["shift"]
        if isinstance(name, str) and _ID.fullmatch(name) and isinstance(shift, int) and shift >= 0:
            return Identity(folder, name, shift)
    return None

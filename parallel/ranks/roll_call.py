"""Who is missing when a collective fails, from the notes that each rank leaves in the store.

A rank whose collective fails answers. One that does not answer within seconds is stopped, hangs or
is gone. The main thread of each rank keeps noting what it is doing, so that the others can say
where it was last seen.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch.distributed as dist

from parallel.errors import LostRankError
from parallel.ranks.flight import FlightRecorder
from parallel.ranks.groups import OpeningError
from parallel.ranks.mesh import few

_PATIENCE = 3.0  # seconds for the others to answer, beyond what they may be apart
_MOST_APART = 60.0
# How gloo, NCCL and the store speak of a peer that is gone.
_LOST_PEER = re.compile(r"gloo/|NCCL|ProcessGroup|TCPStore|Broken pipe|caused pair closure")


@dataclass
class RollCall:
    """This rank's side. store: None where there is one process. host: the rank that serves the
    store, if a rank does. recorder: of this rank, where there is a folder for it. report: what the
    rank that speaks does about a loss; its result is added to the line."""

    store: dist.Store | None
    rank: int
    world: int
    host: int | None = None
    recorder: FlightRecorder | None = None
    report: Callable[[LostRankError], str] = lambda error: ""
    _noted: float = field(default_factory=time.monotonic, init=False)
    _pace: float = field(default=0.0, init=False)  # seconds between the last two notes

    def note(self, doing: str) -> None:
        """Note what this rank does from now on, such as "in step 17", if it still can."""
        if self.recorder is not None:
            self.recorder.phase(doing)
        now = time.monotonic()
        self._pace, self._noted = now - self._noted, now
        if self.store is not None:
            with suppress(
                RuntimeError
            ):  # the store may have gone with the process that started the ranks
                self.store.set(f"seen/{self.rank}", f"{time.time()} {doing}")

    @contextmanager
    def held_on_failure(self, enough: Callable[[], bool]) -> Iterator[None]:
        """Within this context, a collective that fails because another rank is missing raises
        LostRankError, which names the ranks that do not answer within seconds, or sooner where
        `enough` becomes true.
        """
        try:
            yield
        except RuntimeError as error:
            lost_peer = isinstance(error, OpeningError) or _LOST_PEER.search(str(error))
            if self.store is None or not lost_peer:
                raise
            lost = self._who_is_missing(error, enough)
            if lost.speaks:
                lost = LostRankError(f"{lost}{self.report(lost)}", True, lost.lost)
            raise lost from error

    def _who_is_missing(self, error: RuntimeError, enough: Callable[[], bool]) -> LostRankError:
        found: list[LostRankError] = []
        # In a thread: if the store's host has stopped, a request to it never returns.
        asking = threading.Thread(target=lambda: found.append(self._ask(error)), daemon=True)
        asking.start()
        deadline = time.monotonic() + self._patience() + 1.0
        while asking.is_alive() and time.monotonic() < deadline and not enough():
            asking.join(0.05)
        if found:
            return found[0]
        who = "the ranks' store" if self.host is None else f"rank {self.host}"
        first = self.rank == min({0, 1} - {self.host}) and not enough()
        lost = () if self.host is None else (self.host,)
        return LostRankError(f"{who} does not answer", first, lost)

    def _ask(self, error: RuntimeError) -> LostRankError:
        """Answer, and wait for the others to answer."""
        assert self.store is not None
        self.store.set(f"here/{self.rank}", "")
        dist.destroy_process_group()  # who waits for this rank in the world's group fails in turn
        silent = [rank for rank in range(self.world) if rank != self.rank]
        deadline = time.monotonic() + self._patience()
        while silent and time.monotonic() < deadline:
            time.sleep(0.1)
            silent = [rank for rank in silent if not self.store.check([f"here/{rank}"])]
        first = all(rank in silent for rank in range(self.rank))
        if not silent:
            line = str(error).splitlines()[0]
            return LostRankError(f"rank {self.rank} has lost another rank: {line}", first)
        names = few(silent)
        who = f"ranks {names} do not answer" if silent[1:] else f"rank {names} does not answer"
        waits = f"; rank {self.rank} opens {error.what}" if isinstance(error, OpeningError) else ""
        return LostRankError(who + self._last_seen(silent[0]) + waits, first, silent)

    def _patience(self) -> float:
        """Seconds to wait. Ranks that wait for the missing one, in a chain, started waiting within
        one step of each other, so they also give up within one step."""
        return _PATIENCE + min(self._pace, _MOST_APART)

    def _last_seen(self, rank: int) -> str:
        assert self.store is not None
        if not self.store.check([f"seen/{rank}"]):
            return ""
        when, _, doing = self.store.get(f"seen/{rank}").decode().partition(" ")
        return f" (last seen {doing}, {max(0.0, time.time() - float(when)):.0f} s ago)"

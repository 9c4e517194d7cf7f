"""A part of the store that only the ranks of this start see.

torchrun's agent serves one store for all starts of a job, so that a rank that was started again
would find there where the ranks before it could be reached, and wait for them.
"""

from __future__ import annotations

import json
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

_POLL = 0.05  # seconds


def fresh_store(store: dist.Store, rank: int, world: int, timeout: timedelta) -> dist.Store:
    """The part of `store` that the first rank has named for this start.

    Every other rank calls out a word of its own; the first answers with all words that it has heard
    and its name for the start, until each has heard its own word and so cannot have the answer of
    an earlier start. Collective over the world. Raises DistStoreError after `timeout`.
    """
    mine = uuid.uuid4().hex
    store.set(f"word/{rank}", mine)
    deadline = time.monotonic() + timeout.total_seconds()
    name = _name_start(store, world, mine, deadline) if rank == 0 else _hear(store, mine, deadline)
    return dist.PrefixStore(f"start/{name}", store)


def _name_start(store: dist.Store, world: int, name: str, deadline: float) -> str:
    while store.add(f"heard/{name}", 0) < world - 1:
        words = [word.decode() for word in store.multi_get([f"word/{r}" for r in range(world)])]
        store.set("answer", json.dumps([name, words]))
        _pause(deadline)
    return name


def _hear(store: dist.Store, word: str, deadline: float) -> str:
    while True:
        name, words = json.loads(store.get("answer"))
        if word in words:
            store.add(f"heard/{name}", 1)
            return str(name)
        _pause(deadline)


def _pause(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise dist.DistStoreError("TCPStore: not all ranks of this start have come")
    time.sleep(_POLL)

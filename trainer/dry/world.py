"""A world of ranks of which only one is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextmanager
def fake_world(rank: int, world: int, device: torch.device) -> Iterator[None]:
    """The process groups of a world in which this process is `rank` and the others do not exist:
    torch's fake ones, whose collectives return at once."""
    if world == 1:
        yield
        return
    backends = ",".join(f"{kind}:fake" for kind in sorted({"cpu", device.type}))
    dist.init_process_group(backends, store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()

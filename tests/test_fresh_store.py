"""Ranks that are started again find each other, in the store that their first start used too."""

from __future__ import annotations

import random
import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from parallel.ranks.fresh_store import fresh_store

WORLD, PATIENCE = 4, timedelta(seconds=30)


@pytest.mark.parametrize("seed", range(4))
def test_each_start_has_a_part_of_its_own(seed: int) -> None:
    """In whatever order its ranks come, and though a rank of the second start did not."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    draw = random.Random(seed)
    found: dict[tuple[int, int], str] = {}

    def rank(start: int, number: int, delay: float) -> None:
        time.sleep(delay)
        client = dist.TCPStore("127.0.0.1", server.port, is_master=False)
        patience = PATIENCE if start != 1 else timedelta(seconds=0.5)
        try:
            part = fresh_store(client, number, WORLD, patience)
        except dist.DistStoreError:
            return
        part.set(f"rank/{number}", f"{start}")
        found[start, number] = ",".join(
            part.get(f"rank/{other}").decode() for other in range(WORLD) if start != 1
        )

    for start in range(3):
        missing = draw.randrange(1, WORLD) if start == 1 else None
        threads = [
            threading.Thread(target=rank, args=(start, number, draw.random() * 0.3))
            for number in range(WORLD)
            if number != missing
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for start in (0, 2):
        everyone = [found[start, number] for number in range(WORLD)]
        assert everyone == [",".join([str(start)] * WORLD)] * WORLD

"""What ranks do apart: an error on one is an error on all, the slowest is waited for, and one that
does not come is named."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from parallel.errors import LostRankError
from parallel.ranks.process import Process
from parallel.ranks.roll_call import RollCall
from parallel.ranks.together import PeerError, together
from tests.distributed import run_world


def _fail_on_rank_1(process: Process) -> str:
    def part() -> None:
        if process.rank == 1:
            raise OSError("the disk is full")

    try:
        together(part)
    except (OSError, PeerError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_an_error_on_one_rank_is_an_error_on_all() -> None:
    ours, theirs, own = "PeerError", "rank 1: the disk is full", "OSError: the disk is full"
    assert run_world(3, _fail_on_rank_1) == [f"{ours}: {theirs}", own, f"{ours}: {theirs}"]


def _be_slow_on_rank_1(process: Process) -> list[bool]:
    """Whether rank 0 waited: with patience that covers it, and without."""
    waited = []
    for seconds in (60, 1):
        try:
            together(lambda: time.sleep(3 * process.rank), timedelta(seconds=seconds))
            waited.append(True)
        except RuntimeError:  # gloo's own
            waited.append(False)
    return waited


def test_slow_ranks_are_waited_for_as_long_as_is_said() -> None:
    assert run_world(2, _be_slow_on_rank_1)[0] == [True, False]


def _lose_rank_2(process: Process, file: str) -> tuple[str, bool]:
    """Rank 1 waits for rank 2, which hangs, and rank 0, longer, for rank 1."""
    roll_call = RollCall(dist.FileStore(file, 3), process.rank, 3)
    roll_call.note("in step 7")
    pairs = [dist.new_group([0, 1], timeout=timedelta(seconds=2))]
    pairs.append(dist.new_group([1, 2], timeout=timedelta(seconds=1)))
    try:
        with roll_call.held_on_failure(lambda: False):
            if process.rank == 2:
                time.sleep(6)
            else:
                dist.recv(torch.zeros(1), process.rank + 1, group=pairs[process.rank])
    except LostRankError as error:
        return re.sub("[0-9] s ago", "N s ago", str(error)), error.speaks
    return "", False


def test_the_rank_that_hangs_is_named_once_by_those_that_do_not(tmp_path: Path) -> None:
    """Not the rank that only waits for it."""
    line = "rank 2 does not answer (last seen in step 7, N s ago)"
    found = run_world(3, _lose_rank_2, str(tmp_path / "store"))
    assert found == [(line, True), (line, False), ("", False)]


def _lose_the_link(process: Process, file: str) -> tuple[str, bool, float]:
    """Rank 1's connections end, while all ranks live."""
    roll_call = RollCall(dist.FileStore(file, 2), process.rank, 2)
    dist.barrier()
    if process.rank == 1:
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as link:
                link.getpeername()  # only what is connected
                link.shutdown(socket.SHUT_RDWR)
    start = time.monotonic()
    try:
        with roll_call.held_on_failure(lambda: False):
            dist.all_reduce(torch.zeros(1))
    except LostRankError as error:
        return str(error), error.speaks, time.monotonic() - start
    return "", False, 0.0


def test_a_lost_link_is_an_error_on_both_sides(tmp_path: Path) -> None:
    found = run_world(2, _lose_the_link, str(tmp_path / "store"))
    assert all(line.startswith(f"rank {rank} has lost another") for rank, (line, *_) in
               enumerate(found)), found  # fmt: skip
    assert [speaks for _, speaks, _ in found] == [True, False]

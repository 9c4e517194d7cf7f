"""What ranks do apart: an error on one is an error on all, and the slowest is waited for."""

from __future__ import annotations

import time
from datetime import timedelta

from parallel.ranks.groups import patient_world
from parallel.ranks.process import Process
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
    """Whether rank 0 waited: with a group whose timeout covers it, and with one that does not."""
    waited = []
    for seconds in (60, 1):
        group = patient_world(timedelta(seconds=seconds))
        try:
            together(lambda: time.sleep(3 * process.rank), group)
            waited.append(True)
        except RuntimeError:  # gloo's own
            waited.append(False)
    return waited


def test_the_timeout_for_slow_ranks_is_that_of_their_group() -> None:
    assert run_world(2, _be_slow_on_rank_1)[0] == [True, False]

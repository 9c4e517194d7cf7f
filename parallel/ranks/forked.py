"""Ranks as processes of this machine, over gloo."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

from parallel.ranks.process import Process, join, leave


def run_ranks(
    ranks: int,
    function: Callable[..., Any],
    *arguments: Any,
    timeout: timedelta = timedelta(minutes=10),
    real_time: bool = False,
) -> Any:
    """Call function(process, *arguments) on each rank; returns rank 0's result. All must pickle.

    real_time: run the ranks before all ordinary processes of the machine; needs the privilege, as
    root has. Raises torch.multiprocessing.ProcessRaisedException with a rank's traceback.
    """
    # Ranks are forked from one process that has imported what they need.
    multiprocessing.set_forkserver_preload([function.__module__])
    # Ctrl-C reaches every process of the terminal: the server ignores it while it imports.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    forkserver.ensure_running()
    signal.signal(signal.SIGINT, before)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _rank,
            args=(ranks, Path(folder), timeout, real_time, function, arguments),
            nprocs=ranks,
            daemon=True,  # ends with this process
            start_method="forkserver",
        )
        return pickle.loads((Path(folder) / "result").read_bytes())


def _rank(
    rank: int,
    ranks: int,
    folder: Path,
    timeout: timedelta,
    real_time: bool,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends silently; the first process reports it
    if not folder.exists():  # which has ended meanwhile
        return
    torch.set_num_threads(1)
    if real_time:  # before gloo makes its threads, which inherit it
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    process = Process(rank, ranks, rank, ranks)
    join(process, torch.device("cpu"), timeout, f"file://{folder / 'store'}")
    result = function(process, *arguments)
    if rank == 0:
        (folder / "result").write_bytes(pickle.dumps(result))
    leave()

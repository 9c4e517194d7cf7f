"""A small harness: run a function on some gloo ranks, and fail with the rank's own traceback."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from parallel.ranks.process import Process, join, leave

# Children are forked from a server that has imported torch (and dynamo, which the first optimizer
# imports), so that a rank starts in milliseconds.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "torch._dynamo", "trainer.run.step"])


def run_world(
    world: int, function: Callable[..., Any], *arguments: Any, timeout: float = 120.0
) -> list[Any]:
    """Call function(process, *arguments) on `world` ranks; the results by rank.

    The function and what it returns must pickle; tensors are best returned as numpy arrays. Raises
    AssertionError with the traceback of the first rank that failed, or when `timeout` seconds are
    over; no rank outlives the call.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{Path(folder) / 'store'}"
        ranks = []
        for rank in range(world):
            ours, theirs = _CONTEXT.Pipe(duplex=False)
            process = Process(rank, world, rank, world)
            child = _CONTEXT.Process(
                target=_run_rank, args=(theirs, store, process, timeout, function, arguments)
            )
            child.start()
            theirs.close()
            ranks.append((child, ours))
        try:
            return _collect(ranks, time.monotonic() + timeout)
        finally:
            for child, _ in ranks:
                child.kill()
                child.join()


def _collect(ranks: list[tuple[Any, Any]], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    pipes = {pipe: rank for rank, (_, pipe) in enumerate(ranks)}
    while pipes:
        ready = wait(list(pipes), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise AssertionError(f"rank {sorted(pipes.values())} did not finish in time")
        for pipe in ready:
            rank = pipes.pop(pipe)
            try:
                ok, value = pipe.recv()
            except EOFError:
                raise AssertionError(f"rank {rank} died without a word") from None
            if not ok:
                raise AssertionError(f"rank {rank} failed:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(ranks))]


def _run_rank(
    pipe: Any,
    store: str,
    process: Process,
    timeout: float,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    try:
        join(process, torch.device("cpu"), timedelta(seconds=timeout), store)
        result = function(process, *arguments)
        leave()
        pipe.send((True, result))
    except BaseException:
        pipe.send((False, traceback.format_exc()))

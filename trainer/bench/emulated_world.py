"""A world of which one rank is there: what the others would send arrives after a while.

What arrives is what this rank would send to itself, repeated where there is more of it; messages of
the pipeline are random. With routing that is forced to balance, sizes are those of a real world. A
collective takes as long as what leaves this rank takes on its links, and takes no processor, but
for making up what arrives. Links are not shared: two in flight do not slow each other, but on a
GPU, as with NCCL, those of one group.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _create_work_from_future
from torch.futures import Future
from torch.testing._internal.distributed.fake_pg import FakeStore

from trainer.bench.links import Links
from trainer.bench.sleep import Sleep

BACKEND = "emulated"
_AT_ONCE = 1e-6  # seconds that no timer can tell from none


@contextmanager
def emulated_world(rank: int, world: int, links: Links) -> Iterator[None]:
    """This process is `rank`; process groups that are made within have no other."""
    _register(links)
    dist.init_process_group(BACKEND, store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _register(links: Links) -> None:
    """Over these links from now on: torch knows a backend by its name."""

    def create(store: dist.Store, rank: int, world: int, timeout: Any) -> _OneOfMany:
        return _OneOfMany(rank, world, links)

    dist.Backend.register_backend(BACKEND, create, devices=["cpu", "cuda"])


class _OneOfMany(dist.ProcessGroup):
    """A group as its only rank sees it."""

    def __init__(self, rank: int, world: int, links: Links) -> None:
        super().__init__(rank, world)  # type: ignore[call-arg]
        self._links = links
        self._asleep: Sleep | None = None

    def allreduce(  # type: ignore[override]
        self, tensors: list[Tensor], opts: Any = None
    ) -> dist.Work:
        return self._to_each(2 * _bytes(tensors) / self.size(), tensors)

    def broadcast(  # type: ignore[override]
        self, tensors: list[Tensor], opts: Any = None
    ) -> dist.Work:
        return self._to_each(0.0, tensors)

    def barrier(self, opts: Any = None) -> dist.Work:
        return self._to_each(0.0, [])

    def allgather(  # type: ignore[override]
        self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None
    ) -> dist.Work:
        for each, own in zip(outputs, inputs):
            for into in each:
                into.copy_(own)
        return self._to_each(_bytes(inputs), inputs)

    def _allgather_base(self, output: Tensor, own: Tensor, opts: Any = None) -> dist.Work:
        output.view(self.size(), -1).copy_(own.view(1, -1))
        return self._to_each(_bytes([own]), [output])

    def _reduce_scatter_base(self, output: Tensor, own: Tensor, opts: Any = None) -> dist.Work:
        output.copy_(own.view(self.size(), -1)[self.rank()].view_as(output))
        return self._to_each(_bytes([own]) / self.size(), [output])

    def alltoall_base(
        self,
        output: Tensor,
        own: Tensor,
        received: Sequence[int],
        sent: Sequence[int],
        opts: Any = None,
    ) -> dist.Work:
        sent = list(sent) or [len(own) // self.size()] * self.size()
        first = sum(sent[: self.rank()])
        _repeat(own[first : first + sent[self.rank()]], output)
        row = own[:1].numel() * own.element_size()
        return self._after([rows * row for rows in sent], [output])

    def send(self, tensors: list[Tensor], to: int, tag: int = 0) -> dist.Work:
        return self._after([_bytes(tensors) * (rank == to) for rank in range(self.size())], tensors)

    def recv(self, tensors: list[Tensor], source: int, tag: int = 0) -> dist.Work:
        for tensor in tensors:
            tensor.normal_(std=0.02)
        return self._to_each(0.0, tensors)

    def getBackendName(self) -> str:
        return BACKEND

    def _to_each(self, size: float, tensors: list[Tensor]) -> dist.Work:
        """Done when so many bytes have left for each other rank."""
        return self._after([size] * self.size(), tensors)

    def _after(self, sent: Sequence[float], tensors: list[Tensor]) -> dist.Work:
        """Done when so many bytes have left for each rank of the group."""
        ranks = dist.get_process_group_ranks(self)
        me = self.rank()
        away = [0.0 if rank == me else size for rank, size in enumerate(sent)]
        seconds = self._links.seconds(ranks[me], ranks, away)
        if tensors and tensors[0].is_cuda:
            if self._asleep is None:
                self._asleep = Sleep(tensors[0].device)
            return _create_work_from_future(self._asleep.after_what_is_launched(seconds, tensors))
        future: Future[Any] = Future()
        if seconds < _AT_ONCE:
            future.set_result(tensors)
        else:
            threading.Timer(seconds, future.set_result, (tensors,)).start()
        return _create_work_from_future(future)


def _bytes(tensors: Sequence[Tensor]) -> float:
    return float(sum(tensor.nbytes for tensor in tensors))


def _repeat(rows: Tensor, output: Tensor) -> None:
    """Fill the output with these rows, over and over."""
    if not len(rows):
        output.zero_()
        return
    index = torch.arange(len(output), device=output.device) % len(rows)
    output.copy_(rows.index_select(0, index))

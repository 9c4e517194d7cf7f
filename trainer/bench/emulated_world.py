"""A world of which one rank is there: what the others would send arrives after a while.

What arrives is what this rank would send to itself, repeated where there is more of it; messages of
the pipeline are random. With routing that is forced to balance,
sizes are those of a real world. A collective takes as long as what leaves this rank takes on a link
of a given rate, whichever rank it goes to, and takes no processor, but for making up what arrives.
Links are not shared: two in flight do not slow each other.
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

BACKEND = "emulated"
_AT_ONCE = 1e-6  # seconds that no timer can tell from none


@contextmanager
def emulated_world(rank: int, world: int, rate: float) -> Iterator[None]:
    """This process is `rank`; process groups that are made within have no other. rate: of a link,
    bytes per second."""
    _register(rate)
    dist.init_process_group(BACKEND, store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _register(rate: float) -> None:
    """Of links of this rate from now on: torch knows a backend by its name."""

    def create(store: dist.Store, rank: int, world: int, timeout: Any) -> _OneOfMany:
        return _OneOfMany(rank, world, rate)

    dist.Backend.register_backend(BACKEND, create, devices=["cpu", "cuda"])


class _OneOfMany(dist.ProcessGroup):
    """A group as its only rank sees it."""

    def __init__(self, rank: int, world: int, rate: float) -> None:
        super().__init__(rank, world)  # type: ignore[call-arg]
        self._rate = rate

    def allreduce(  # type: ignore[override]
        self, tensors: list[Tensor], opts: Any = None
    ) -> dist.Work:
        return self._after(2 * _bytes(tensors) * self._away, tensors)

    def broadcast(  # type: ignore[override]
        self, tensors: list[Tensor], opts: Any = None
    ) -> dist.Work:
        return self._after(0.0, tensors)

    def barrier(self, opts: Any = None) -> dist.Work:
        return self._after(0.0, [])

    def allgather(  # type: ignore[override]
        self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None
    ) -> dist.Work:
        for each, own in zip(outputs, inputs):
            for into in each:
                into.copy_(own)
        return self._after(_bytes(inputs) * self._away, inputs)

    def _allgather_base(self, output: Tensor, own: Tensor, opts: Any = None) -> dist.Work:
        output.view(self.size(), -1).copy_(own.view(1, -1))
        return self._after(_bytes([own]) * self._away, [output])

    def _reduce_scatter_base(self, output: Tensor, own: Tensor, opts: Any = None) -> dist.Work:
        output.copy_(own.view(self.size(), -1)[self.rank()].view_as(output))
        return self._after(_bytes([own]) * self._away, [output])

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
        return self._after((sum(sent) - sent[self.rank()]) * row, [output])

    def send(self, tensors: list[Tensor], to: int, tag: int = 0) -> dist.Work:
        return self._after(_bytes(tensors), tensors)

    def recv(self, tensors: list[Tensor], source: int, tag: int = 0) -> dist.Work:
        for tensor in tensors:
            tensor.normal_(std=0.02)
        return self._after(0.0, tensors)

    def getBackendName(self) -> str:
        return BACKEND

    @property
    def _away(self) -> float:
        """Of what goes to all ranks, the share that leaves this one."""
        return (self.size() - 1) / self.size()

    def _after(self, sent: float, tensors: list[Tensor]) -> dist.Work:
        """Done when so many bytes have left."""
        seconds = sent / self._rate
        if tensors and tensors[0].is_cuda:
            return _create_work_from_future(_on_gpu(seconds, tensors))
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


def _on_gpu(seconds: float, tensors: list[Tensor]) -> Future[Any]:
    """Done when a stream of its own has slept so long, after all that has been launched."""
    device = tensors[0].device
    asleep = torch.cuda.Stream(device)
    asleep.wait_stream(torch.cuda.current_stream(device))
    future: Future[Any] = Future(devices=[device])
    with torch.cuda.stream(asleep):
        kilohertz = torch.cuda.get_device_properties(device).clock_rate
        torch.cuda._sleep(int(seconds * kilohertz * 1e3))
        future.set_result(tensors)
    return future

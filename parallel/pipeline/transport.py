"""Messages between the ranks of one pipeline, over torch.distributed.

Messages up and down the ranks go through a process group each: a channel (source, destination) is
then first in, first out and independent of the one that comes back, so that with NCCL a send never
blocks the receive that its peer waits for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.ranks.mesh import RankSet
from parallel.schedule.lower import Channel, Message


@dataclass
class Receive:
    """A receive that has been posted."""

    work: dist.Work
    buffer: Tensor

    def wait(self) -> Tensor:
        self.work.wait()
        return self.buffer


@dataclass
class Transport:
    """Sends and receives tensors of one shape and dtype, to and from the other pipeline ranks.

    rank: this pipeline rank. ranks: world ranks by pipeline rank. up, down: groups over all of
    them, for messages to higher and to lower pipeline ranks. unreceived: sends that may be in
    flight on a channel before the oldest is waited for, which frees its tensor; the check proves
    that this cannot deadlock.
    """

    rank: int
    ranks: RankSet
    up: dist.ProcessGroup
    down: dist.ProcessGroup
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    _sent: dict[int, deque[tuple[dist.Work, Tensor]]] = field(default_factory=dict)

    def open(self, channels: Iterable[Channel]) -> None:
        """Send one message through each channel (source, destination), by pipeline rank.

        NCCL makes the communicator of two ranks at their first message, and blocks the host until
        both have come; a receive posted ahead of use would then wait for a peer that waits for us.
        Collective over the pipeline, with the same channels.
        """
        for source, destination in sorted(channels):
            message = Message("activation", 0, 0, 0, source, destination)
            if self.rank == source:
                self.send(message, torch.zeros(self.shape, dtype=self.dtype, device=self.device))
                self.finish()
            elif self.rank == destination:
                self.post(message).wait()

    @property
    def unreceived(self) -> int:
        return 2 * len(self.ranks) + 2

    def post(self, message: Message) -> Receive:
        """Post the receive of `message` without waiting."""
        buffer = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        work = dist.irecv(buffer, self.ranks[message.source], group=self._group(message))
        return Receive(_in_group(work), buffer)

    def send(self, message: Message, tensor: Tensor) -> None:
        """Start sending `tensor`, which must not change before `finish`."""
        tensor = tensor.contiguous()
        work = dist.isend(tensor, self.ranks[message.destination], group=self._group(message))
        queue = self._sent.setdefault(message.destination, deque())
        queue.append((_in_group(work), tensor))
        if len(queue) > self.unreceived:
            queue.popleft()[0].wait()

    def finish(self) -> None:
        """Wait until all sends have been received."""
        for queue in self._sent.values():
            while queue:
                queue.popleft()[0].wait()

    def _group(self, message: Message) -> dist.ProcessGroup:
        return self.up if message.destination > message.source else self.down


def _in_group(work: dist.Work | None) -> dist.Work:
    """The work of a message; torch gives none to a rank that is outside the group."""
    if work is None:
        raise ValueError("this rank is not in the process group of its pipeline")
    return work

"""Messages between the ranks of one pipeline, over torch.distributed.

Messages up and down the ranks go through a process group each: a channel (source, destination) is
then first in, first out and independent of the one that comes back, so that with NCCL a send
never stands in the way of the receive that its peer waits for.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.groups import RankSet
from parallel.pipeline.lower import Message


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

    ranks: world ranks by pipeline rank. up, down: groups over all of them, for messages to higher
    and to lower pipeline ranks. unreceived: sends that may be under way on a channel before the
    oldest is waited for, which frees its tensor; more than a schedule ever has in its warm-up.
    """

    ranks: RankSet
    up: dist.ProcessGroup
    down: dist.ProcessGroup
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    _sent: dict[int, deque[tuple[dist.Work, Tensor]]] = field(default_factory=dict)

    @property
    def unreceived(self) -> int:
        return 2 * len(self.ranks) + 2

    def post(self, message: Message) -> Receive:
        """Post the receive of `message` without waiting."""
        buffer = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        work = dist.irecv(buffer, self.ranks[message.source], group=self._group(message))
        return Receive(work, buffer)

    def send(self, message: Message, tensor: Tensor) -> None:
        """Start to send `tensor`, which must not change before `finish`."""
        tensor = tensor.contiguous()
        work = dist.isend(tensor, self.ranks[message.destination], group=self._group(message))
        queue = self._sent.setdefault(message.destination, deque())
        queue.append((work, tensor))
        if len(queue) > self.unreceived:
            queue.popleft()[0].wait()

    def finish(self) -> None:
        """Wait until all sends have been received."""
        for queue in self._sent.values():
            while queue:
                queue.popleft()[0].wait()

    def _group(self, message: Message) -> dist.ProcessGroup:
        return self.up if message.destination > message.source else self.down

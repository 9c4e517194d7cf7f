"""Messages between the ranks of one pipeline, over torch.distributed.

Each channel (source, destination) has a process group of its two ranks, so that it is first in,
first out, and independent of all others: with NCCL a communicator of its own, on which nothing but
its messages waits, whether torch makes it at once or at the first message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.ranks.groups import GroupSpec, started
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
class Unreceived:
    """Tensors sent on one channel, kept until they have been received.

    limit: sends that may be in flight before the oldest is waited for; the check proves that this
    cannot deadlock. Only NCCL says before a wait what has been received: with gloo up to `limit`
    tensors are kept.
    """

    limit: int
    _sent: deque[tuple[dist.Work, Tensor]] = field(default_factory=deque)

    def add(self, work: dist.Work, tensor: Tensor) -> None:
        self._sent.append((work, tensor))

    def forget(self) -> None:
        """Let go of what has been received."""
        while self._sent and (len(self._sent) > self.limit or self._sent[0][0].is_completed()):
            self._sent.popleft()[0].wait()

    def finish(self) -> None:
        """Wait until all has been received."""
        while self._sent:
            self._sent.popleft()[0].wait()


@dataclass
class Transport:
    """Sends and receives tensors of one shape and dtype, to and from the other pipeline ranks.

    rank: this pipeline rank. ranks: world ranks by pipeline rank. groups: of the channels of this
    rank, by pipeline ranks.
    """

    rank: int
    ranks: RankSet
    groups: Mapping[Channel, dist.ProcessGroup]
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    _unreceived: dict[Channel, Unreceived] = field(init=False)

    def __post_init__(self) -> None:
        limit = 2 * len(self.ranks) + 2
        self._unreceived = {channel: Unreceived(limit) for channel in self.groups}

    def post(self, message: Message) -> Receive:
        """Post the receive of `message` without waiting."""
        self._forget()
        buffer = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        work = dist.irecv(buffer, self.ranks[message.source], group=self._group(message))
        return Receive(started(work), buffer)

    def send(self, message: Message, tensor: Tensor) -> None:
        """Start sending `tensor`, which must not change before `finish`."""
        tensor = tensor.contiguous()
        work = dist.isend(tensor, self.ranks[message.destination], group=self._group(message))
        self._unreceived[message.source, message.destination].add(started(work), tensor)
        self._forget()

    def finish(self) -> None:
        """Wait until all sends have been received."""
        for unreceived in self._unreceived.values():
            unreceived.finish()

    def _forget(self) -> None:
        for unreceived in self._unreceived.values():
            unreceived.forget()

    def _group(self, message: Message) -> dist.ProcessGroup:
        channel = message.source, message.destination
        if channel not in self.groups:
            raise ValueError(
                f"rank {self.rank} has no channel for the {message}: make the transport with the "
                "channels of every table that it is to run"
            )
        return self.groups[channel]


def channel_specs(
    pipelines: Sequence[RankSet], channels: Iterable[Channel]
) -> Mapping[GroupSpec, Channel]:
    """The groups of all channels of the world, each with its channel by pipeline ranks.

    pipelines: the world ranks of each. channels: of each, by pipeline ranks.
    """
    return {
        GroupSpec((ranks[source], ranks[destination]), "a channel", "message"): (
            source,
            destination,
        )
        for ranks in pipelines
        for source, destination in sorted(channels)
    }

"""The transport: a group of two ranks for each channel, and no tensor kept that was received."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.pipeline.transport import Transport, channel_specs
from parallel.ranks.groups import open_groups
from parallel.ranks.mesh import Mesh
from parallel.ranks.process import Process
from parallel.schedule.lower import Message
from tests.distributed import run_world

CPU, SHAPE = torch.device("cpu"), (2,)
CHANNELS = [(0, 1), (1, 0), (1, 2), (2, 0)]


def message(source: int, destination: int) -> Message:
    return Message("activation", 0, 0, 0, source, destination)


def transport_of(rank: int, ranks: tuple[int, ...], groups: Any) -> Transport:
    return Transport(rank, ranks, groups, SHAPE, torch.float32, CPU)


def pass_on(process: Process) -> tuple[dict[tuple[int, int], list[int]], int, list[float]]:
    """Two pipelines of three ranks: the channels of this rank, with the ranks of their groups; how
    many of the groups are different; and what arrives."""
    mesh = Mesh(pipeline=3, expert_data=2)
    pipelines = [mesh.pipeline_group(rank) for rank in range(mesh.data)]
    specs = channel_specs(pipelines, CHANNELS)
    opened = open_groups(specs, process.rank, timedelta(seconds=30), CPU)
    groups = {specs[spec]: group for spec, group in opened.items()}
    rank = mesh.coordinate(process.rank).pipeline
    transport = transport_of(rank, mesh.pipeline_group(process.rank), groups)
    posted = [transport.post(message(*channel)) for channel in groups if channel[1] == rank]
    for channel in groups:
        if channel[0] == rank:
            transport.send(message(*channel), torch.full(SHAPE, float(process.rank)))
    arrived = [float(receive.wait()[0]) for receive in posted]
    transport.finish()
    with pytest.raises(ValueError, match=r"has no channel for the activation.*rank 2 -> rank 1"):
        transport.post(message(2, 1))
    members = {channel: dist.get_process_group_ranks(group) for channel, group in groups.items()}
    return members, len(set(map(id, groups.values()))), arrived


def test_each_channel_has_a_group_of_its_two_ranks() -> None:
    results = run_world(6, pass_on)
    for world_rank, (members, distinct, arrived) in enumerate(results):
        rank, pipeline = divmod(world_rank, 2)
        mine = [channel for channel in CHANNELS if rank in channel]
        assert members == {c: sorted(2 * end + pipeline for end in c) for c in mine}
        assert distinct == len(mine)
        assert sorted(arrived) == sorted(2 * s + pipeline for s, d in CHANNELS if d == rank)


@dataclass
class Sending:
    """A send in flight, that is received when it is told so, or at the latest when waited for."""

    waited: list[Sending] = field(repr=False)
    received: bool = False

    def is_completed(self) -> bool:
        return self.received

    def wait(self) -> None:
        self.received = True
        self.waited.append(self)


def test_sent_tensors_are_kept_until_they_are_received(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the channel, whichever message comes next; and never more than the limit."""
    sendings: list[Sending] = []
    waited: list[Sending] = []

    def isend(tensor: Tensor, *_: Any, **__: Any) -> Sending:
        sendings.append(Sending(waited))
        return sendings[-1]

    monkeypatch.setattr(dist, "isend", isend)
    monkeypatch.setattr(dist, "irecv", lambda *_, **__: Sending([]))
    transport = transport_of(1, (0, 1), {(0, 1): None, (1, 0): None})
    sent: list[weakref.ref[Tensor]] = []

    def send() -> None:
        tensor = torch.ones(SHAPE)
        sent.append(weakref.ref(tensor))
        transport.send(message(1, 0), tensor)

    def kept() -> list[int]:
        return [n for n, tensor in enumerate(sent) if tensor() is not None]

    for _ in range(4):
        send()
    sendings[1].received = True
    transport.post(message(0, 1))
    assert kept() == [0, 1, 2, 3]  # the oldest is still on its way
    sendings[0].received = True
    transport.post(message(0, 1))
    assert kept() == [2, 3]
    sendings[2].received = True
    send()
    assert kept() == [3, 4]
    assert len(waited) == 3

    for _ in range(10):
        send()
    assert len(kept()) == 6  # 2 x ranks + 2
    transport.finish()
    assert kept() == [] and all(sending.received for sending in sendings)

"""What is measured: a matrix product, an all-to-all within each node, links between nodes, clocks.

All ranks measure at the same time, as they train. The rates are medians of a few repetitions: a GPU
that is throttled is fast at first.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

_REPEATS = 5
_PINGS = 5


@dataclass(frozen=True)
class Sizes:
    """width: of the square matrices. part: bytes from each rank to each other rank of its node.
    message: bytes from node to node. seconds: for the products."""

    width: int
    part: int
    message: int
    seconds: float
    dtype: torch.dtype


CPU = Sizes(512, 2**18, 2**20, 0.3, torch.float32)
CUDA = Sizes(8192, 2**25, 2**28, 2.0, torch.bfloat16)


@dataclass(frozen=True)
class Work:
    """How one rank does what is measured, and by which clocks: of the day, and of short times."""

    multiply: Callable[[torch.Tensor, torch.Tensor], object] = torch.mm
    exchange: Callable[[torch.Tensor, torch.Tensor, dist.ProcessGroup], object] = field(
        default=lambda into, sent, group: dist.all_to_all_single(into, sent, group=group)
    )
    send: Callable[[torch.Tensor, int], object] = dist.send
    receive: Callable[[torch.Tensor, int], object] = dist.recv
    clock: Callable[[], float] = time.time
    timer: Callable[[], float] = time.perf_counter


def sizes(device: torch.device) -> Sizes:
    return CUDA if device.type == "cuda" else CPU


def product_rate(device: torch.device, work: Work) -> float:
    """FLOP/s of products of two square matrices."""
    asked = sizes(device)
    a_NN, b_NN = (
        torch.randn(asked.width, asked.width, dtype=asked.dtype, device=device) for _ in range(2)
    )
    end = work.timer() + asked.seconds
    taken: list[float] = []
    while work.timer() < end or len(taken) <= _REPEATS:
        taken.append(_seconds(device, work, lambda: work.multiply(a_NN, b_NN)))
    return float(2 * asked.width**3 / statistics.median(taken[1:]))  # the first loads the kernel


def exchange_rate(
    device: torch.device, work: Work, group: dist.ProcessGroup | None
) -> float | None:
    """Bytes/s that this rank sends to all others of `group`, its node; None where it is alone."""
    if group is None:
        return None
    ranks, part = dist.get_world_size(group), sizes(device).part
    sent, into = (torch.zeros(ranks * part, dtype=torch.uint8, device=device) for _ in range(2))
    taken = [
        _seconds(device, work, lambda: work.exchange(into, sent, group))
        for _ in range(_REPEATS + 1)
    ]
    return (ranks - 1) * part / statistics.median(taken[1:])  # the first makes the connections


def link_rate(device: torch.device, work: Work, rank: int, peer: int) -> float:
    """Bytes/s between this rank and `peer`, there and back, one way at a time."""
    size = sizes(device).message
    sent, into = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))

    def there_and_back() -> None:
        for way in (True, False):
            if (rank < peer) == way:
                work.send(sent, peer)
            else:
                work.receive(into, peer)

    taken = [_seconds(device, work, there_and_back) for _ in range(_REPEATS + 1)]
    return 2 * size / statistics.median(taken[1:])


def rounds(nodes: int, most: int) -> Iterator[dict[int, int]]:
    """Who measures with whom: in each round every node has one partner, or none, and never twice
    the same. At most `most` rounds: a node whose links are slow is slow in all of them, the others
    only in the one with it."""
    seats = nodes + nodes % 2
    for turn in range(min(most, seats - 1) if nodes > 1 else 0):
        # The circle method: one seat stays, the others move on by one.
        circle = [0, *(1 + (seat + turn) % (seats - 1) for seat in range(seats - 1))]
        pairs = zip(circle[: seats // 2], reversed(circle[seats // 2 :]))
        found = {a: b for a, b in pairs if max(a, b) < nodes}
        yield found | {b: a for a, b in found.items()}


def clock_offsets(rank: int, others: Sequence[int], work: Work) -> list[float]:
    """Seconds by which the clocks of the ranks `others` are ahead of rank 0's: on rank 0; on the
    others nothing of use. Collective over these ranks and 0.

    The reading of a clock lies somewhere within a ping; the shortest one says it best.
    """
    answer = torch.zeros(1, dtype=torch.float64)
    if rank == 0:
        return [min(_ping(other, answer, work) for _ in range(_PINGS))[1] for other in others]
    if rank in others:
        for _ in range(_PINGS):
            dist.recv(answer, 0)
            dist.send(torch.tensor([work.clock()], dtype=torch.float64), 0)
    return []


def _ping(other: int, answer: torch.Tensor, work: Work) -> tuple[float, float]:
    """(seconds that it took, seconds by which the other clock is ahead)."""
    start = work.clock()
    dist.send(answer, other)
    dist.recv(answer, other)
    end = work.clock()
    return end - start, answer.item() - (start + end) / 2


def _seconds(device: torch.device, work: Work, action: Callable[[], object]) -> float:
    _synchronise(device)
    start = work.timer()
    action()
    _synchronise(device)
    return work.timer() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

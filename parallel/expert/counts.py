"""How many rows ranks will send each other: exchanged early, on the host when they are wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.ranks.groups import started


class CountExchange:
    """Rank i of `group` gets row i of our counts [R, C] (int64), and we get a row of each rank's.

    Results: both tables on the host, [2, R, C], sent and received; and the received one on the
    device. The group is best one that carries nothing else: then a host that waits for counts does
    not wait for rows that were sent before them.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self.group = group
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None

    def start(self, *tensors: Tensor) -> CountsInFlight:
        (counts_RC,) = tensors
        received_RC = torch.empty_like(counts_RC)
        work = started(
            dist.all_to_all_single(received_RC, counts_RC, group=self.group, async_op=True)
        )
        if self._stream is None:
            return CountsInFlight(work, counts_RC, received_RC)
        # On a stream of its own, so that the copy waits for nothing that is launched from now on.
        with torch.cuda.stream(self._stream):
            work.wait()
            both_2RC = torch.stack((counts_RC, received_RC))
            host_2RC = torch.empty(both_2RC.shape, dtype=both_2RC.dtype, pin_memory=True)
            host_2RC.copy_(both_2RC, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        return CountsInFlight(work, counts_RC, received_RC, host_2RC, arrived)


@dataclass
class CountsInFlight:
    """host_2RC, arrived: the copy on its way to the host, and the event that ends it; None where
    the copy is made in the wait."""

    work: dist.Work
    counts_RC: Tensor
    received_RC: Tensor
    host_2RC: Tensor | None = None
    arrived: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Block the host until the counts are there: the only time that an MoE layer does."""
        if self.arrived is not None:
            self.arrived.synchronize()
            return
        self.work.wait()
        self.host_2RC = torch.stack((self.counts_RC, self.received_RC)).cpu()

    def results(self) -> tuple[Tensor, ...]:
        assert self.host_2RC is not None  # the wait is over
        return self.host_2RC, self.received_RC

    def follow(self) -> None:
        """Make the current stream of a GPU wait until the exchange is done."""
        self.work.wait()

    def on_completion(self, callback: Callable[[], None]) -> None:
        """Call back, from another thread, when the exchange has completed."""
        self.work.get_future().add_done_callback(lambda _: callback())

"""All-to-all of rows over torch.distributed (gloo, NCCL): a collective that a tape can reverse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.ranks.groups import started


@dataclass
class InFlight:
    """Started all-to-alls, with what must stay alive until they are done."""

    works: list[dist.Work]
    sent: tuple[Tensor, ...]
    received: tuple[Tensor, ...]

    def wait(self) -> tuple[Tensor, ...]:
        for work in self.works:
            work.wait()
        self.sent = ()
        return self.received

    def follow(self) -> None:
        """Make the current stream of a GPU wait until they are done, and keep all for `wait`."""
        for work in self.works:
            work.wait()

    def on_completion(self, callback: Callable[[], None]) -> None:
        """Call back, from another thread, when the last of them has completed."""
        done = torch.futures.collect_all([work.get_future() for work in self.works])
        done.add_done_callback(lambda _: callback())


@dataclass(frozen=True)
class AllToAll:
    """Rank i of `group` gets `send_rows[i]` rows of ours, we get `receive_rows[i]` rows of its."""

    group: dist.ProcessGroup
    send_rows: tuple[int, ...]
    receive_rows: tuple[int, ...]

    def start(self, *tensors: Tensor) -> InFlight:
        """tensors: [sum(send_rows), ...] each, rows sorted by destination."""
        sent = tuple(tensor.contiguous() for tensor in tensors)
        received = tuple(
            torch.empty((sum(self.receive_rows), *tensor.shape[1:]), dtype=tensor.dtype,
                        device=tensor.device)
            for tensor in sent
        )  # fmt: skip
        works = [
            started(
                dist.all_to_all_single(
                    into, tensor, list(self.receive_rows), list(self.send_rows), self.group,
                    async_op=True,
                )
            )
            for into, tensor in zip(received, sent)
        ]  # fmt: skip
        return InFlight(works, sent, received)

    def reversed(self) -> AllToAll:
        return AllToAll(self.group, self.receive_rows, self.send_rows)

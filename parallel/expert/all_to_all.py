"""All-to-all of rows over torch.distributed (gloo, NCCL)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.ranks.groups import started


@dataclass
class InFlight:
    """Started all-to-alls, with what must stay alive until they are done. finish: turns what has
    arrived into results."""

    works: list[dist.Work]
    sent: tuple[Tensor, ...]
    received: tuple[Tensor, ...]
    finish: Callable[..., tuple[Tensor, ...]]

    def wait(self) -> None:
        for work in self.works:
            work.wait()
        self.sent = ()

    def results(self) -> tuple[Tensor, ...]:
        received, self.received = self.received, ()
        return self.finish(*received)

    def follow(self) -> None:
        """Make the current stream of a GPU wait until they are done, and keep all for `wait`."""
        for work in self.works:
            work.wait()

    def on_completion(self, callback: Callable[[], None]) -> None:
        """Call back, from another thread, when the last of them has completed."""
        done = torch.futures.collect_all([work.get_future() for work in self.works])
        done.add_done_callback(lambda _: callback())


def start_all_to_all(
    group: dist.ProcessGroup,
    send_rows: Sequence[int],
    receive_rows: Sequence[int],
    tensors: Sequence[Tensor],
    finish: Callable[..., tuple[Tensor, ...]],
) -> InFlight:
    """Rank i of `group` gets send_rows[i] rows of each tensor, we get receive_rows[i] of its.

    tensors: [sum(send_rows), ...] each, rows sorted by destination.
    """
    sent = tuple(tensor.contiguous() for tensor in tensors)
    received = tuple(each.new_empty((sum(receive_rows), *each.shape[1:])) for each in sent)
    works = [
        started(
            dist.all_to_all_single(
                into, tensor, list(receive_rows), list(send_rows), group, async_op=True
            )
        )
        for into, tensor in zip(received, sent)
    ]
    return InFlight(works, sent, received, finish)

"""DeepEP V1: `deep_ep.Buffer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.expert.deepep_carrier import Came, Event, Largest, Rows


class Buffer(Protocol):
    """Of deep_ep.Buffer what is used here."""

    def get_dispatch_layout(
        self, topk_idx: Tensor, num_experts: int
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Event]: ...

    def dispatch(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        handle: Any = None,
        num_tokens_per_rank: Tensor | None = None,
        num_tokens_per_rdma_rank: Tensor | None = None,
        is_token_in_rank: Tensor | None = None,
        num_tokens_per_expert: Tensor | None = None,
        topk_idx: Tensor | None = None,
        topk_weights: Tensor | None = None,
        *,
        async_finish: bool = False,
    ) -> tuple[Any, Tensor | None, Tensor | None, list[int] | None, Any, Event]: ...

    def combine(
        self,
        x: Tensor,
        handle: Any,
        topk_weights: Tensor | None = None,
        *,
        async_finish: bool = False,
    ) -> tuple[Tensor, Tensor | None, Event]: ...


@dataclass(frozen=True)
class DeepEPV1:
    """A Carrier."""

    buffer: Buffer

    @classmethod
    def open(cls, kind: Any, group: dist.ProcessGroup, largest: Largest) -> DeepEPV1:
        """kind: deep_ep.Buffer. Collective over the group."""
        if largest.sms:
            kind.set_num_sms(largest.sms)
        ranks = group.size()
        configs = kind.get_dispatch_config(ranks), kind.get_combine_config(ranks)
        row = largest.dim * torch.bfloat16.itemsize
        nvlink = max(config.get_nvl_buffer_size_hint(row, ranks) for config in configs)
        rdma = max(config.get_rdma_buffer_size_hint(row, ranks) for config in configs)
        return cls(kind(group, nvlink, rdma))

    def layout(self, place_TK: Tensor, experts: int) -> dict[str, Tensor | None]:
        per_rank, per_node, per_expert, in_rank, _ = self.buffer.get_dispatch_layout(
            place_TK, experts
        )
        return {
            "num_tokens_per_rank": per_rank, "num_tokens_per_rdma_rank": per_node,
            "is_token_in_rank": in_rank, "num_tokens_per_expert": per_expert,
        }  # fmt: skip

    def first(self, x: Rows, weights_TK: Tensor, place_TK: Tensor, layout: Any) -> Came:
        x_ND, slot_NK, weights_NK, sizes, handle, event = self.buffer.dispatch(
            x, topk_idx=place_TK, topk_weights=weights_TK, async_finish=True, **layout
        )
        assert slot_NK is not None and weights_NK is not None and sizes is not None
        return Came(x_ND, weights_NK, slot_NK, sizes, handle, event)

    def again(self, x: Rows, handle: Any) -> tuple[Rows, Event]:
        x_ND, *_, event = self.buffer.dispatch(x, handle, async_finish=True)
        return x_ND, event

    def back(
        self, x_ND: Tensor, weights_NK: Tensor | None, handle: Any
    ) -> tuple[Tensor, Tensor | None, Event]:
        return self.buffer.combine(x_ND, handle, topk_weights=weights_NK, async_finish=True)

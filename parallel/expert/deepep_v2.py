"""DeepEP V2: `deep_ep.ElasticBuffer`, whose dispatch makes its layout itself and keeps the numbers
of rows on its handle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch.distributed as dist
from torch import Tensor

from parallel.expert.deepep_carrier import Came, Event, Largest, Rows


class Handle(Protocol):
    """Of deep_ep.EPHandle what is used here."""

    @property
    def num_experts(self) -> int: ...

    @property
    def num_recv_tokens_per_expert_list(self) -> list[int]: ...


class ElasticBuffer(Protocol):
    """Of deep_ep.ElasticBuffer what is used here."""

    def dispatch(
        self,
        x: Rows,
        topk_idx: Tensor | None = None,
        topk_weights: Tensor | None = None,
        *,
        num_experts: int | None = None,
        num_sms: int = 0,
        async_with_compute_stream: bool = False,
        handle: Any = None,
    ) -> tuple[Rows, Tensor | None, Tensor | None, Handle, Event]: ...

    def combine(
        self,
        x: Tensor,
        handle: Any,
        topk_weights: Tensor | None = None,
        *,
        async_with_compute_stream: bool = False,
    ) -> tuple[Tensor, Tensor | None, Event]: ...


@dataclass(frozen=True)
class DeepEPV2:
    """A Carrier. sms: 0 for DeepEP's own choice, which is made for routers without groups."""

    buffer: ElasticBuffer
    sms: int = 0

    @classmethod
    def open(cls, kind: Any, group: dist.ProcessGroup, largest: Largest) -> DeepEPV2:
        """kind: deep_ep.ElasticBuffer. Collective over the group."""
        buffer = kind(
            group, num_max_tokens_per_rank=largest.tokens, hidden=largest.dim,
            num_topk=largest.top_k, use_fp8_dispatch=largest.fp8,
        )  # fmt: skip
        return cls(buffer, largest.sms)

    def layout(self, place_TK: Tensor, experts: int) -> int:
        return experts

    def first(self, x: Rows, weights_TK: Tensor, place_TK: Tensor, layout: Any) -> Came:
        x_ND, slot_NK, weights_NK, handle, event = self.buffer.dispatch(
            x, place_TK, weights_TK, num_experts=layout, num_sms=self.sms,
            async_with_compute_stream=True,
        )  # fmt: skip
        assert slot_NK is not None and weights_NK is not None
        sizes = handle.num_recv_tokens_per_expert_list
        return Came(x_ND, weights_NK, slot_NK, sizes, handle, event)

    def again(self, x: Rows, handle: Handle) -> tuple[Rows, Event]:
        x_ND, *_, event = self.buffer.dispatch(
            x, num_experts=handle.num_experts, num_sms=self.sms, handle=handle,
            async_with_compute_stream=True,
        )  # fmt: skip
        return x_ND, event

    def back(
        self, x_ND: Tensor, weights_NK: Tensor | None, handle: Any
    ) -> tuple[Tensor, Tensor | None, Event]:
        return self.buffer.combine(x_ND, handle, weights_NK, async_with_compute_stream=True)

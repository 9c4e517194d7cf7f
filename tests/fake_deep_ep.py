"""deep_ep.Buffer (V1) and ElasticBuffer (V2) as their documentation describes them, over gloo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class FakeEvent:
    """Of an asynchronous call: results are there once the stream has waited. Others have none."""

    def __init__(self, finish: Any = None) -> None:
        self.finish = finish

    def current_stream_wait(self) -> None:
        assert self.finish is not None, "the call was not asynchronous"
        self.finish()


@dataclass(frozen=True)
class Handle:
    """in_rank: [T, R]. received: rows from each rank."""

    in_rank: Tensor
    received: list[int]


class FakeBuffer:
    """values, weights: the types that the kernels take; wider ones stand for them in tests.
    sent: rows to each rank, of every dispatch."""

    def __init__(
        self, values: torch.dtype = torch.bfloat16, weights: torch.dtype = torch.float32
    ) -> None:
        self.values, self.weights = values, weights
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.sent: list[list[int]] = []

    def get_dispatch_layout(self, topk_idx: Tensor, num_experts: int) -> Any:
        assert topk_idx.dtype is torch.int64 and topk_idx.is_contiguous()
        each = num_experts // self.ranks
        in_rank = torch.zeros(len(topk_idx), self.ranks, dtype=torch.bool)
        in_rank.scatter_(1, topk_idx // each, True)
        per_expert = topk_idx.flatten().bincount(minlength=num_experts).int()
        return in_rank.sum(0).int(), None, per_expert, in_rank, FakeEvent()

    def dispatch(
        self, x: Any, handle: Handle | None = None, num_tokens_per_rank: Tensor | None = None,
        num_tokens_per_rdma_rank: Tensor | None = None, is_token_in_rank: Tensor | None = None,
        num_tokens_per_expert: Tensor | None = None, topk_idx: Tensor | None = None,
        topk_weights: Tensor | None = None, *, async_finish: bool = False,
    ) -> Any:  # fmt: skip
        codes_and_scales = isinstance(x, tuple)
        x, scales = x if codes_and_scales else (x, None)
        wanted = torch.float8_e4m3fn if codes_and_scales else self.values
        assert x.dtype is wanted and x.ndim == 2 and x.is_contiguous()
        if scales is not None:
            assert scales.dtype is torch.float32 and len(scales) == len(x)
            x = x.view(torch.uint8)  # which can be sent as an object
        cached = handle is not None
        if cached:
            assert topk_idx is None and topk_weights is None and num_tokens_per_rank is None
            in_rank = handle.in_rank
        else:
            assert topk_weights.dtype is self.weights and topk_weights.is_contiguous()
            in_rank = is_token_in_rank
            assert torch.equal(num_tokens_per_rank, in_rank.sum(0).int())
        self.sent.append(in_rank.sum(0).tolist())
        mine = self._exchanged([
            [t[to] for t in (x, topk_idx, topk_weights, scales) if t is not None]
            for to in in_rank.T
        ])  # fmt: skip
        rows = [part[0] for part in mine]
        recv_x, finish = _late(torch.cat(rows))
        if scales is not None:
            recv_x = recv_x.view(torch.float8_e4m3fn), torch.cat([part[-1] for part in mine])
        if cached:
            return recv_x, None, None, None, None, FakeEvent(finish)
        each = len(num_tokens_per_expert) // self.ranks
        local = torch.cat([part[1] for part in mine]) - self.rank * each
        elsewhere = (local < 0) | (local >= each)
        weights = torch.cat([part[2] for part in mine]).masked_fill(elsewhere, 0)
        sizes = local[~elsewhere].bincount(minlength=each).tolist()
        handle = Handle(in_rank, [len(part) for part in rows])
        return (
            recv_x, local.masked_fill(elsewhere, -1), weights, sizes, handle, FakeEvent(finish)
        )  # fmt: skip

    def combine(
        self, x: Tensor, handle: Handle, topk_weights: Tensor | None = None, *,
        async_finish: bool = False,
    ) -> Any:  # fmt: skip
        assert x.dtype is self.values and x.is_contiguous() and len(x) == sum(handle.received)
        parts = [x.split(handle.received)]
        if topk_weights is not None:
            assert topk_weights.dtype is self.weights and len(topk_weights) == len(x)
            parts.append(topk_weights.split(handle.received))
        arrived = self._exchanged([list(part) for part in zip(*parts)])
        sums = []
        for kind, like in enumerate((x, topk_weights)[: len(parts)]):
            total = torch.zeros(len(handle.in_rank), like.shape[1], dtype=like.dtype)
            total = total.double()  # the kernels sum in float32, and round once
            for source, part in enumerate(arrived):
                total[handle.in_rank[:, source]] += part[kind].double()
            sums.append(total.to(like.dtype))
        combined, finish = _late(sums[0])
        return combined, sums[1] if len(sums) > 1 else None, FakeEvent(finish)

    def _exchanged(self, to_each: list[list[Tensor]]) -> list[list[Tensor]]:
        """From each rank what it has for this one."""
        everything: list[Any] = [None] * self.ranks
        dist.all_gather_object(everything, to_each)
        return [theirs[self.rank] for theirs in everything]


@dataclass(frozen=True)
class ElasticHandle:
    """deep_ep.EPHandle."""

    inner: Handle
    num_experts: int
    num_recv_tokens_per_expert_list: list[int]


class FakeElasticBuffer:
    """Routing weights of experts elsewhere are undefined here."""

    def __init__(self, values: torch.dtype, weights: torch.dtype) -> None:
        self._inner = FakeBuffer(values, weights)
        self.sent = self._inner.sent

    def dispatch(
        self, x: Any, topk_idx: Tensor | None = None, topk_weights: Tensor | None = None, *,
        num_experts: int | None = None, num_sms: int = 0,
        async_with_compute_stream: bool = False, handle: ElasticHandle | None = None,
    ) -> Any:  # fmt: skip
        assert num_sms % 2 == 0 and async_with_compute_stream
        if handle is not None:
            assert topk_idx is None and num_experts in (None, handle.num_experts)
            assert num_sms or num_experts, "DeepEP's own choice of SMs divides by num_experts"
            recv_x, *_, event = self._inner.dispatch(x, handle.inner)
            return recv_x, None, None, handle, event
        per_rank, _, per_expert, in_rank, _ = self._inner.get_dispatch_layout(topk_idx, num_experts)
        recv_x, slots, weights, sizes, inner, event = self._inner.dispatch(
            x, None, per_rank, None, in_rank, per_expert, topk_idx, topk_weights
        )
        weights = weights.masked_fill(slots < 0, float("nan"))
        return recv_x, slots, weights, ElasticHandle(inner, num_experts, sizes), event

    def combine(
        self, x: Tensor, handle: ElasticHandle, topk_weights: Tensor | None = None, *,
        async_with_compute_stream: bool = False,
    ) -> Any:  # fmt: skip
        assert async_with_compute_stream
        return self._inner.combine(x, handle.inner, topk_weights)


def _late(result: Tensor) -> tuple[Tensor, Any]:
    """A tensor that has its numbers once the function has been called."""
    late = torch.full_like(result, float("nan") if result.is_floating_point() else 127)
    return late, lambda: late.copy_(result)

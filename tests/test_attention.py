"""The kernels of attention: pinned, the same numbers, refused in words where they cannot run."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from parallel.ops.attention import AttentionKernel, causal_attention
from parallel.ops.attention_kernel import (
    AskedKernel,
    AttentionError,
    AttentionShape,
    attention_kernel,
)

CPU = torch.device("cpu")
FLASH, MATH = "_scaled_dot_product_flash_attention_for_cpu", "bmm"


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def _inputs(query: int = 192, value: int = 128) -> tuple[Tensor, Tensor, Tensor]:
    """[B, S, H, N] in memory, seen as [B, H, S, N], as the model gives them."""
    generator = torch.Generator().manual_seed(0)
    made = (torch.randn(2, 16, 2, w, generator=generator) for w in (query, query, value))
    query_x, key_x, value_x = (x.transpose(1, 2).requires_grad_() for x in made)
    return query_x, key_x, value_x


def _by_hand(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    scores = query @ key.mT * scale
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1) @ value


# By itself torch takes flash for values as wide as queries, else math.
@pytest.mark.parametrize(("kernel", "value", "calls"), [("flash", 128, FLASH), ("math", 192, MATH)])
def test_the_pinned_kernel_runs_and_gives_the_formula(
    kernel: AttentionKernel, value: int, calls: str
) -> None:
    inputs = _inputs(value=value)
    with _Calls() as seen:
        out = causal_attention(*inputs, 0.1, kernel)
    assert {FLASH, MATH} & seen.names == {calls}
    expected = _by_hand(*inputs, 0.1)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(out)
    for found, wanted in zip(
        torch.autograd.grad(out, inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_flash_attention_3_is_called_as_its_interface_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flash_attn_func(  # type: ignore[no-untyped-def]
        q, k, v, softmax_scale=None, causal=False
    ) -> Tensor:
        assert causal
        assert q.shape == k.shape == (2, 16, 2, 192)
        assert v.shape == (2, 16, 2, 128)
        assert q.is_contiguous()  # no copy on the way
        return _by_hand(*(x.transpose(1, 2) for x in (q, k, v)), softmax_scale).transpose(1, 2)

    package = SimpleNamespace(flash_attn_func=flash_attn_func)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", package)  # type: ignore[arg-type]
    inputs = _inputs()
    out = causal_attention(*inputs, 0.1, "flash3")
    torch.testing.assert_close(out, _by_hand(*inputs, 0.1))


@pytest.mark.parametrize(
    ("asked", "widths", "chosen"),
    [("auto", (192, 128), "flash"), ("auto", (64, 128), "math"), ("math", (192, 128), "math")],
)
def test_auto_takes_the_first_that_runs(
    asked: AskedKernel, widths: tuple[int, int], chosen: str
) -> None:
    assert attention_kernel(asked, AttentionShape(2, *widths, torch.float32), CPU) == chosen


@pytest.mark.parametrize(
    ("asked", "widths", "says"),
    [
        ("flash", (64, 128), "values of 128 per head in bfloat16: .*wider than queries"),
        ("cudnn", (192, 128), "run.attention = cudnn cannot run on cpu .*flash and math.* to auto"),
    ],
)
def test_one_that_cannot_run_is_refused_in_words(
    asked: AskedKernel, widths: tuple[int, int], says: str
) -> None:
    with pytest.raises(AttentionError, match=says):
        attention_kernel(asked, AttentionShape(2, *widths, torch.bfloat16), CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernel_that_a_gpu_takes_gives_the_formula() -> None:
    shape = AttentionShape(2, 192, 128, torch.bfloat16)
    kernel = attention_kernel("auto", shape, torch.device("cuda", 0))
    assert kernel != "math"
    inputs = [x.detach().bfloat16().cuda() for x in _inputs()]
    expected = _by_hand(*(x.cpu().float() for x in inputs), 0.1)
    found = causal_attention(*inputs, 0.1, kernel).cpu().float()
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)

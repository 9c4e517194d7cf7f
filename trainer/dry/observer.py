"""Sees every operation of one rank, on a device that has no memory and no numbers.

Tensors on the device are torch's fake tensors, of which sizes, types and devices are real; tensors
on the host are real, unless they are large. So the program of a rank runs as it is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from parallel.errors import TandemError
from trainer.dry import collectives
from trainer.dry.memory import LiveBytes
from trainer.dry.record import Call, Record, Where
from trainer.dry.routing import BalancedRouting
from trainer.dry.values import MOST, compute, known, numbers_of, set_known, tensors_in
from trainer.dry.waits import HostWaits, line

aten = torch.ops.aten
_FACTORIES = {
    aten.empty.memory_format, aten.zeros.default, aten.ones.default, aten.full.default,
    aten.empty_strided.default, aten.randn.default, aten.rand.default,
}  # fmt: skip


class DryRunError(TandemError):
    """The program does what a device cannot do, or what a dry run cannot follow."""


class Observer(TorchDispatchMode):
    """Active within its context.

    where: of what runs; whoever runs it keeps it up to date. routing: that is assumed.
    """

    def __init__(self, record: Record, device: torch.device, routing: BalancedRouting) -> None:
        super().__init__()
        self.record, self.device, self.routing, self.where = record, device, routing, Where()
        self.memory = LiveBytes(lambda: self.where)
        self._waits = HostWaits(record)
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __enter__(self) -> Observer:
        self._lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(.., device): by way of the host
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self._lifted)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "c10d":
            return self._collective(func, args)
        if func is torch.ops.tandem.launched.default:
            self.record.launches += 1
            return None
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        if func is aten.set_.source_Storage:  # what has been recomputed fills its storage again
            self.memory.look_at(args[1])
        self.record.operations += 1
        if self._is_of_host(args, kwargs):
            if func in _FACTORIES and math.prod(args[0]) > MOST:
                kwargs = {**kwargs, "device": "meta"}
            return func(*args, **kwargs)
        if func in (aten._to_copy.default, aten.copy_.default):
            return self._copy(func, args, kwargs)
        if func is aten._local_scalar_dense.default:
            return self._item(args[0])
        if torch.Tag.dynamic_output_shape in func.tags and _is_sized_by_numbers(func, args):
            return self._sized_by_numbers(func, args, kwargs)
        return self._run(func, args, kwargs)

    def _is_of_host(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the operation is to run for real."""
        device = kwargs.get("device")
        if device is not None and torch.device(device).type not in ("cpu", "meta"):
            return False
        fake = False

        def look(tensor: Tensor) -> None:
            nonlocal fake
            fake = fake or isinstance(tensor, FakeTensor)

        tensors_in(args, look)
        return not fake

    # ---- on the device ----

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """On fake tensors, and on their numbers where these are known."""
        if not func.is_view and "empty" not in func._schema.name:
            self.record.launches += 1
        if "_like" in func._schema.name and not isinstance(args[0], FakeTensor):
            args = (self._empty_like(args[0], args[0].device), *args[1:])  # only a pattern
        try:
            out = self._fake.__torch_dispatch__(func, (), args, kwargs)
        except FakeTensorDeviceMismatchError as error:
            why = str(error).splitlines()[0]
            raise DryRunError(f"{self._here()}: {_name(func)}: {why}") from error
        tensors_in(out, self._see)
        self._number(func, args, kwargs, out)
        return out

    def _see(self, tensor: Tensor) -> None:
        if tensor.device.type == self.device.type:
            self.memory.see(tensor)

    def _empty_like(self, tensor: Tensor, device: torch.device, dtype: Any = None) -> Tensor:
        made: Tensor = self._fake.__torch_dispatch__(  # type: ignore[assignment]
            aten.empty_strided.default, (), (list(tensor.shape), list(tensor.stride())),
            {"dtype": dtype or tensor.dtype, "device": device},
        )  # fmt: skip
        return made

    def _number(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        """Give the result its numbers, where these follow from those of the operands."""
        if func is aten.topk.default and self.routing.decides(*args[:2]):
            numbers: Any = (None, self.routing.experts_of(len(args[0])))
        else:
            numbers = numbers_of(func, args, kwargs, out)
        if isinstance(out, Tensor):
            set_known(out, numbers)
        elif isinstance(out, (list, tuple)):
            parts = numbers if isinstance(numbers, (list, tuple)) else [None] * len(out)
            for tensor, part in zip(out, parts):
                if isinstance(tensor, Tensor):
                    set_known(tensor, part)

    # ---- waits of the host ----

    def _sized_by_numbers(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        self._waits.count(_name(func), self.where)
        numbers = compute(func, args, kwargs)
        if numbers is None:
            raise DryRunError(
                f"{self._here()}: the size of {_name(func)} depends on numbers that a dry run does "
                "not have"
            )
        out = self._empty_like(numbers, args[0].device)
        self._see(out)
        set_known(out, numbers)
        return out

    def _item(self, tensor: Tensor) -> Any:
        """A number read from the device; 1 or True where it has none."""
        if tensor.device.type == self.device.type:
            self._waits.count("item", self.where)
        numbers = known(tensor)
        if numbers is not None:
            return numbers.item()
        return torch.ones((), dtype=tensor.dtype).item()

    def _copy(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Between host and device, or on one of both."""
        made = func is aten._to_copy.default
        source = args[0] if made else args[1]
        target = torch.device(kwargs.get("device") or source.device) if made else args[0].device
        if source.device.type == target.type:
            return self._run(func, args, kwargs)
        to_host = target.type == "cpu"
        asynchronous = kwargs.get("non_blocking") or (not made and len(args) > 2 and args[2])
        if not asynchronous and source.device.type != "meta":
            what = "copy to the host" if to_host else "copy to the device"
            self._waits.count(what, self.where)
        numbers = known(source)
        if to_host and made and source.numel() <= MOST:
            real = torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype)
            return real if numbers is None else real.copy_(numbers.nan_to_num(1.0))
        into = self._empty_like(source, target, kwargs.get("dtype")) if made else args[0]
        if not isinstance(into, FakeTensor):
            return into if numbers is None else into.copy_(numbers)
        self._see(into)
        exact = numbers is not None and not source.is_floating_point()
        set_known(into, numbers.to(into.dtype) if numbers is not None and exact else None)
        return into

    def _here(self) -> str:
        return f"rank {self.record.rank}, {self.where}, {line()}"

    # ---- collectives ----

    def _collective(self, func: Any, args: tuple[Any, ...]) -> Any:
        started, me = collectives.read(func, args), self.record.rank
        tensors, ranks = started.sent or started.received, started.group
        if started.peer is not None:
            other = ranks[started.peer]
            ranks = (me, other) if started.kind == "send" else (other, me)
            self.memory.is_for("messages", (t for t in tensors if isinstance(t, FakeTensor)))
        rows = started.kind == "all-to-all"
        call = Call(
            kind=started.kind,
            ranks=ranks,
            dtype=str(tensors[0].dtype).removeprefix("torch.") if tensors else "",
            elements=sum(math.prod(t.shape[1:]) if rows else t.numel() for t in tensors),
            where=self.where,
            bytes=sum(t.numel() * t.element_size() for t in tensors),
            sent=started.splits[0],
            received=started.splits[1],
        )
        self.record.calls.append(call)
        collectives.arrive(started, started.group.index(me))
        work = FakeWork().boxed()
        return work if started.answer is None else (started.answer, work)


def _name(func: Any) -> str:
    return str(func._schema.name.removeprefix("aten::"))


def _is_sized_by_numbers(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the size of the result depends on numbers; of an index it does only with masks."""
    if func is not aten.index.Tensor:
        return True
    return any(index is not None and index.dtype is torch.bool for index in args[1])

"""Bytes that live on the device, by what they are for, and the most that ever did."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, UntypedStorage


@dataclass
class _Live:
    """A storage: what keeps an eye on it, its bytes when last seen, and its category."""

    storage: weakref.ref[UntypedStorage]
    bytes: int
    category: str


class LiveBytes:
    """Storages of one device. They are seen when an operation gives a tensor of theirs, and their
    deaths at once; storage that is resized in place is seen at the next `look`."""

    def __init__(self, where: Callable[[], object]) -> None:
        """where: asked at every new peak."""
        self.category = "other"
        self.peak: Mapping[str, int] = {}
        self.peak_where: object = ""
        self.peaks: Counter[str] = Counter()
        self._where, self._live, self._now = where, dict[int, _Live](), Counter[str]()
        self._total = self._most = 0

    def see(self, tensor: Tensor) -> None:
        """An operation has given this tensor."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        reference = weakref.ref(storage, lambda _: self._died(key))
        self._live[key] = _Live(reference, 0, self.category)
        self._resized(self._live[key], storage.nbytes())

    def is_for(self, category: str, tensors: Iterable[Tensor]) -> None:
        """These tensors are of this category, which is less than "other" at the time they came."""
        for tensor in tensors:
            self.see(tensor)
            live = self._live[tensor.untyped_storage()._cdata]
            size = live.bytes
            self._resized(live, 0)
            live.category = category
            self._resized(live, size)

    def look(self) -> None:
        """Look at all storages again: some may have been resized in place."""
        for live in list(self._live.values()):
            storage = live.storage()
            if storage is not None and (size := storage.nbytes()) != live.bytes:
                self._resized(live, size)

    def look_at(self, storage: UntypedStorage) -> None:
        """Look at this one again, if it has been seen before."""
        live = self._live.get(storage._cdata)
        if live is not None:
            self._resized(live, storage.nbytes())

    def now(self) -> dict[str, int]:
        """Bytes by category."""
        return {category: size for category, size in self._now.items() if size}

    def forget_peak(self) -> None:
        """What has lived until now is no peak."""
        self._most, self.peaks = 0, Counter(self._now)
        self._grown()

    def _resized(self, live: _Live, size: int) -> None:
        grown, live.bytes = size - live.bytes, size
        self._now[live.category] += grown
        self._total += grown
        self.peaks[live.category] = max(self.peaks[live.category], self._now[live.category])
        if grown > 0:
            self._grown()

    def _grown(self) -> None:
        if self._total > self._most:
            self._most, self.peak, self.peak_where = self._total, self.now(), self._where()

    def _died(self, key: int) -> None:
        self._resized(self._live.pop(key), 0)

"""What the preflight has read and measured on one rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """One rank's. node: its number, from 0; host: its name. free: bytes at run.dir; shared: whether
    it sees there what rank 0 has written. clock: seconds by which its node is ahead of rank 0's.
    product: FLOP/s of a matrix product. exchange: bytes/s that it sends in an all-to-all of its
    node; link: bytes/s to and from the best other node that was tried; None where there is no
    other."""

    rank: int
    node: int
    host: str
    versions: Mapping[str, str]
    environment: Mapping[str, str]
    free: int
    shared: bool
    clock: float
    product: float
    exchange: float | None
    link: float | None

    @property
    def where(self) -> str:
        return f"node {self.node} ({self.host})"

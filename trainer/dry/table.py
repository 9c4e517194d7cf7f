"""What a dry run has seen, as JSON and as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from parallel.ranks.mesh import RankSet
from trainer.config.schema import ModelConfig
from trainer.dry.record import MESSAGES, Call, Record

_GIB = 2**30


def as_json(record: Record, model: ModelConfig) -> dict[str, Any]:
    """Sizes in bytes; counts of one step."""
    return {
        "rank": record.rank,
        "world": record.world,
        "micro_batches": record.micro_batches,
        "collectives": [
            {"kind": kind, "ranks": ranks, "dtype": dtype, "count": count, "bytes": size}
            for (kind, ranks, dtype), (count, size) in _collectives(record).items()
        ],
        "messages": [
            {"source": source, "destination": destination, "count": count, "bytes": size}
            for (source, destination), (count, size) in _messages(record).items()
        ],
        "memory": {
            "before": dict(record.start),
            "peak": dict(record.peak),
            "peak_at": str(record.peak_where),
            "most_by_category": dict(record.peaks),
        },
        "host_waits": [
            {"layer": kind, "pass": label, "what": what, "line": line, "count": count}
            for (kind, label, what, line), count in _waits(record, model).items()
        ],
        "launches": record.launches,
    }


def as_lines(record: Record, model: ModelConfig) -> Iterator[str]:
    """The same for a person."""
    yield f"rank {record.rank} of {record.world}, a step of {record.micro_batches} micro-batches"
    yield ""
    rows: list[tuple[str, ...]] = [
        (kind, f"{ranks} ranks", dtype, f"{count:,}", _size(size))
        for (kind, ranks, dtype), (count, size) in _collectives(record).items()
    ]
    yield from _columns(("collectives", "group", "type", "count", "sent"), rows)
    rows = [
        (f"rank {source} to {destination}", f"{count:,}", _size(size))
        for (source, destination), (count, size) in _messages(record).items()
    ]
    yield from _columns(("messages", "count", "bytes"), rows)
    rows = [
        (name, _size(record.start.get(name, 0)), _size(size), _size(record.peaks.get(name, 0)))
        for name, size in record.peak.items()
    ]
    total = [_size(sum(sizes.values())) for sizes in (record.start, record.peak)]
    rows.append(("all", *total, total[-1]))
    header = ("memory", "before the step", "at the peak", "at its own peak")
    yield from _columns(header, rows)
    yield f"the peak is in {record.peak_where}"
    yield ""
    yield f"{record.launches:,} kernels launched, {_waited(record)} waits of the host"
    yield ""
    rows = [
        (kind, label, what, line, f"{count:,}")
        for (kind, label, what, line), count in _waits(record, model).items()
    ]
    yield from _columns(("the host waits in", "pass", "for", "line", "count"), rows)


def _waited(record: Record) -> str:
    return f"{sum(record.waits.values()):,}"


Key = TypeVar("Key")


def _sums(calls: Iterable[Call], key: Callable[[Call], Key]) -> Mapping[Key, tuple[int, int]]:
    """(count, bytes) of the calls that have the same key."""
    sums: dict[Key, tuple[int, int]] = {}
    for call in calls:
        count, size = sums.get(key(call), (0, 0))
        sums[key(call)] = count + 1, size + call.bytes
    return sums


def _collectives(record: Record) -> Mapping[tuple[str, int, str], tuple[int, int]]:
    """By kind, ranks of the group and type."""
    calls = (call for call in record.calls if call.kind not in MESSAGES)
    return _sums(calls, lambda call: (call.kind, len(call.ranks), call.dtype))


def _messages(record: Record) -> Mapping[RankSet, tuple[int, int]]:
    """By (source, destination)."""
    return _sums((c for c in record.calls if c.kind in MESSAGES), lambda call: call.ranks)


def _waits(record: Record, model: ModelConfig) -> Mapping[tuple[str, str, str, str], int]:
    """By kind of layer, pass, what the host waits for, and line of the source."""
    sums: Counter[tuple[str, str, str, str]] = Counter()
    for wait, count in record.waits.items():
        kind = _kind(wait.where.layer, model)
        sums[kind, wait.where.label, wait.what, wait.line] += count
    return sums


def _kind(layer: str, model: ModelConfig) -> str:
    name, _, number = layer.partition(" ")
    if name == "layer":
        return "dense layer" if int(number) < model.dense_layers else "MoE layer"
    return "MTP module" if name == "MTP" else name or "the step"


def _columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Aligned columns, numbers to the right, and an empty line; "none" where there are no rows."""
    if not rows:
        yield f"{header[0]}: none"
        yield ""
        return
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    numbers = [all(row[i][:1].isdigit() for row in rows) for i in range(len(header))]
    for row in (header, *rows):
        cells = zip(row, widths, numbers)
        yield "  ".join(c.rjust(w) if number else c.ljust(w) for c, w, number in cells).rstrip()
    yield ""


def _size(size: int) -> str:
    return f"{size / _GIB:.2f} GiB" if size >= _GIB else f"{size / 2**20:.2f} MiB"

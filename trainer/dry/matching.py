"""Whether the calls of all ranks match: on every group the same collectives in the same order, of
sizes that agree; on every channel the same messages."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

from parallel.ranks.mesh import RankSet
from trainer.dry.record import Call
from trainer.dry.sequence import AFTER, Entry, GroupKey

Entries: TypeAlias = tuple[Entry, ...]
ByRank: TypeAlias = Mapping[int, Mapping[GroupKey, Entries]]
"""By world rank, what it calls on each of its groups. Ranks that call the same share entries."""


Splits: TypeAlias = Mapping[int, Call]


class Mismatch(NamedTuple):
    """Where ranks do not match. number: of the call on this group, from 0."""

    rank: int
    group: RankSet
    number: int
    what: str

    def __str__(self) -> str:
        return (
            f"rank {self.rank}, call {self.number} on the group of {_few(self.group)}: {self.what}"
        )


def mismatches(calls: ByRank) -> Iterator[Mismatch]:
    """The first one of every group and channel that has any."""
    groups: dict[GroupKey, dict[int, Entries]] = defaultdict(dict)
    for rank, by_group in calls.items():
        for key, entries in by_group.items():
            groups[key][rank] = entries
    seen: dict[tuple[bool, tuple[int, ...]], bool] = {}  # whether the same entries have matched
    for key, by_rank in groups.items():
        is_channel, ranks = key
        each = {rank: by_rank.get(rank, ()) for rank in ranks}
        same = is_channel, tuple(id(entries) for entries in each.values())
        if seen.get(same):
            continue
        compare = _channel if is_channel else _group
        found = next(compare(ranks, each), None)
        seen[same] = found is None
        if found is not None:
            yield found


def _group(ranks: RankSet, each: Mapping[int, Entries]) -> Iterator[Mismatch]:
    """Members have the same forms in the same order, and their splits agree."""
    forms = {rank: tuple(entry.form for entry in entries) for rank, entries in _once(each)}
    by_id = {id(each[rank]): form for rank, form in forms.items()}
    usual = Counter(by_id[id(each[rank])] for rank in ranks).most_common(1)[0][0]
    example = next(each[rank] for rank in ranks if by_id[id(each[rank])] == usual)
    for rank in ranks:
        if by_id[id(each[rank])] != usual:
            yield _first_difference(rank, ranks, each[rank], example)
            return
    distinct = {id(entries): entries for entries in each.values()}
    kinds = [id(each[rank]) for rank in ranks]
    checked: set[tuple[object, ...]] = set()
    for number in range(len(example)):
        splits: Splits = {key: entries[number].call for key, entries in distinct.items()}
        agreed = tuple((call.sent, call.received) for call in splits.values())
        if agreed in checked:
            continue
        checked.add(agreed)
        for a, b, sent, received in _disagreeing(kinds, splits):
            what = (
                f"{each[ranks[a]][number]} sends {sent} rows to rank {ranks[b]}, which expects "
                f"{received}"
            )
            yield Mismatch(ranks[a], ranks, number, what)
            return


def _disagreeing(kinds: list[int], splits: Splits) -> Iterator[tuple[int, int, int, int]]:
    """(from, to, rows sent, rows expected) of members of an all-to-all."""
    for a, kind in enumerate(kinds):
        sent = splits[kind].sent
        for b in range(len(sent)):
            expected = splits[kinds[b]].received[a]
            if sent[b] != expected:
                yield a, b, sent[b], expected


def _channel(ranks: RankSet, each: Mapping[int, Entries]) -> Iterator[Mismatch]:
    """What the first rank sends is what the second receives, in the same order."""
    sends, receives = (each[rank] for rank in ranks)
    for number, (send, receive) in enumerate(zip(sends, receives)):
        out, into = ((e.message, e.call.dtype, e.call.elements) for e in (send, receive))
        if out != into:
            yield Mismatch(ranks[1], ranks, number, f"{receive} meets the {send}")
            return
    if len(sends) != len(receives):
        number = min(len(sends), len(receives))
        more = (sends if len(sends) > number else receives)[number]
        yield Mismatch(ranks[0], ranks, number, f"the {more} has no counterpart")


def _first_difference(rank: int, ranks: RankSet, odd: Entries, usual: Entries) -> Mismatch:
    number = next(
        (i for i, (a, b) in enumerate(zip(odd, usual)) if a.form != b.form),
        min(len(odd), len(usual)),
    )
    said = [
        f"{e[number]} {_place(e[number])}" if number < len(e) else "nothing" for e in (odd, usual)
    ]
    return Mismatch(rank, ranks, number, f"{said[0]}, where the others call {said[1]}")


def _place(entry: Entry) -> str:
    at = "after the items" if entry.position == AFTER else f"in item {entry.position + 1}"
    return f"({entry.call.where}, {at})"


def _once(each: Mapping[int, Entries]) -> Iterator[tuple[int, Entries]]:
    """One rank of those that share their entries."""
    return iter({id(entries): (rank, entries) for rank, entries in each.items()}.values())


def _few(ranks: RankSet) -> str:
    more = len(ranks) - 4
    return "ranks " + ", ".join(map(str, ranks[:4])) + f" and {more} more" * (more > 0)

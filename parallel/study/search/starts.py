"""What the search starts with: handcrafted tables on a V, or one that is given."""

from __future__ import annotations

from dataclasses import replace

from parallel.schedule.check import check, peak_in_flight
from parallel.schedule.generators import GENERATORS
from parallel.schedule.generators.placements import v_placement
from parallel.schedule.table import Schedule, ScheduleError
from parallel.study.search.orders import TIE, Orders
from parallel.study.search.run import Run
from parallel.study.search.words import FORWARD, INPUT, PAIR, Word, words_of


def fitting(table: Schedule, orders: Orders) -> Schedule:
    """`table`, if it is one that the search can start with."""
    ranks, micro_batches, cap = orders.ranks, orders.micro_batches, orders.cap
    if (table.ranks, table.micro_batches) != (ranks, micro_batches):
        raise ScheduleError(
            f"{table.name} is for {table.ranks} ranks and {table.micro_batches} micro-batches, "
            f"not {ranks} and {micro_batches}"
        )
    if dict(table.placement) != v_placement(ranks) or not table.training:
        raise ScheduleError(f"{table.name} is not a table of training on a V")
    if (peak := max(check(table).peak_in_flight)) > cap / 2 + TIE:
        raise ScheduleError(f"{table.name} holds {peak} full-stage activations, above {cap / 2}")
    return table


def handcrafted(orders: Orders) -> list[Schedule]:
    """All tables on a V under the cap; at the least, one micro-batch after the other."""
    ranks, micro_batches = orders.ranks, orders.micro_batches
    tables = []
    for generator in GENERATORS.values():
        try:
            table = generator(ranks, micro_batches)
        except ScheduleError:
            continue  # does not support these numbers
        placed = dict(table.placement) == v_placement(ranks)
        if placed and max(peak_in_flight(table)) <= orders.cap / 2 + TIE:
            tables.append(table)
    if not tables:
        word = [FORWARD, FORWARD + 1, INPUT + 1, INPUT] * micro_batches
        one_by_one = run_of(orders, [word] * ranks).schedule()
        tables = [replace(one_by_one, name="one micro-batch at a time")]
    return tables


def start_of(table: Schedule, orders: Orders) -> Run:
    """The run of a table, its Ws put where a run puts them, and zbv's with pairs where it can be.

    A steady state of zbv, F0 I0 F1 I1 over and over, is where pairs cost its ranks no waiting.
    """
    words = words_of(table, orders.pairs_pay)
    if table.name == "zbv":
        pays = enumerate(orders.pairs_pay)
        try:
            return run_of(orders, [_paired(words[r], r) if pay else words[r] for r, pay in pays])
        except ScheduleError:
            pass  # a cap or numbers that pairs cannot be followed with
    return run_of(orders, words)


def run_of(orders: Orders, words: list[Word]) -> Run:
    """The run of words; raises ScheduleError if they cannot be followed."""
    lines = [orders.line(rank, word) for rank, word in enumerate(words)]
    run = Run(orders, [line for line in lines if line])
    if None in lines or not run.follow():
        raise ScheduleError("the words to start with cannot be followed")
    return run


def _paired(word: Word, rank: int) -> Word:
    """Every F0 I0 F1 I1 as F0&B0 F1&B1; on rank 0, where an I1 waits for that F1, F0&B0 F1 I1."""
    turn = [FORWARD, INPUT, FORWARD + 1, INPUT + 1]
    pairs = [PAIR, *([PAIR + 3] if rank else turn[2:])]
    paired: Word = []
    position = 0
    while position < len(word):
        if word[position : position + 4] == turn:
            paired += pairs
            position += 4
        else:
            paired.append(word[position])
            position += 1
    return paired

"""When each item of given words ends: the evaluation that the search spends its time in.

A rank computes its letters in order, each as soon as its input is there. A W that fits at least
half into the wait for it is computed meanwhile, the oldest first; others when the memory cap wants
them done, and the rest at the end.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from math import inf

from parallel.schedule.generators.placements import v_placement
from parallel.schedule.table import Schedule
from parallel.study.search.orders import TIE, Line, Orders
from parallel.study.search.words import INPUT, PAIR, SEARCHED, program_of


class Run:
    """The words of all ranks, run.

    ends, filled: by rank and position; when it ends, and how many Ws come before it. arrivals: by
    slot. Times are those of `simulate` where every receive is posted in time; elsewhere they are
    earlier.
    """

    __slots__ = ("arrivals", "ends", "filled", "lines", "orders")

    def __init__(self, orders: Orders, lines: list[Line]) -> None:
        self.orders, self.lines = orders, lines
        self.ends: list[list[float]] = [[] for _ in lines]
        self.filled: list[list[int]] = [[] for _ in lines]
        self.arrivals = [0.0] + [inf] * (4 * orders.ranks * orders.micro_batches)

    def finish(self) -> list[float]:
        """The end of each rank, its optimizer included; the last of them is the makespan."""
        ranks = zip(self.ends, self.filled, self.lines, self.orders.after)
        return [ends[-1] + line.rest[filled[-1]] + after for ends, filled, line, after in ranks]

    def changed(self, rank: int, line: Line, limit: float = inf) -> Run | None:
        """The run where `rank` has another word; None if that deadlocks or ends after `limit`.

        All that has ended or arrived before the rank could start the first changed letter is kept.
        """
        first = 0
        for old, new in zip(self.lines[rank].ops, line.ops):
            if old is not new:
                break
            first += 1
        time = self.ends[rank][first - 1] if first else 0.0
        lines = self.lines[:]
        lines[rank] = line
        run = Run(self.orders, lines)
        if not self.orders.transmission and time > 0:
            before = time - self.orders.hop - TIE
            kept = [bisect_left(ends, before) for ends in self.ends]
            run.ends = [ends[:end] for ends, end in zip(self.ends, kept)]
            run.filled = [filled[:end] for filled, end in zip(self.filled, kept)]
            run.arrivals = [x if x < time else inf for x in self.arrivals]
        return run if run.follow(limit) else None

    def follow(self, limit: float = inf) -> bool:
        """Run what has not ended yet; False where ranks wait forever.

        May be False, too, where a rank's work ends after `limit`.
        """
        arrivals, lines = self.arrivals, self.lines
        waiting: dict[int, int] = {}
        awake = list(range(self.orders.ranks))
        send = self._channels() if self.orders.transmission else None
        while awake:
            rank = awake.pop()
            line, ends, filled = lines[rank], self.ends[rank], self.filled[rank]
            clock, done = (ends[-1], filled[-1]) if ends else (0.0, 0)
            weights = line.weights
            for op in line.ops[len(ends) :]:
                while done < op.wanted:
                    clock += weights[done]
                    done += 1
                source, other = op.first_input, op.second_input
                arrival = arrivals[source]
                if other and arrivals[other] > arrival:
                    source, arrival = other, arrivals[other]
                if arrival > clock:
                    if arrival == inf:
                        waiting[source] = rank
                        break
                    split = op.split
                    while done < split and clock + 0.5 * weights[done] <= arrival:
                        clock += weights[done]
                        done += 1
                    if arrival > clock:
                        clock = arrival
                        if clock + line.left[len(ends)] + line.rest[done] > limit:
                            return False
                clock += op.duration
                ends.append(clock)
                filled.append(done)
                target = op.first_output
                if target:
                    under_way = op.first_under_way
                    if send:
                        under_way = send(rank, clock, target, under_way)
                    arrivals[target] = clock + under_way
                    if target in waiting:
                        awake.append(waiting.pop(target))
                    target = op.second_output
                    if target:
                        under_way = op.second_under_way
                        if send:
                            under_way = send(rank, clock, target, under_way)
                        arrivals[target] = clock + under_way
                        if target in waiting:
                            awake.append(waiting.pop(target))
        return not waiting

    def _channels(self) -> Callable[[int, float, int, float], float]:
        """What says how long a message sent now is under way, after those sent before."""
        orders = self.orders
        free = [[0.0, 0.0] for _ in range(orders.ranks)]  # of the channels up and down, by rank

        def send(rank: int, time: float, slot: int, under_way: float) -> float:
            if not under_way:
                return 0.0
            down = (slot - 1) // orders.micro_batches % orders.ranks > rank
            start = max(time, free[rank][down])
            free[rank][down] = start + orders.transmission
            return start - time + under_way

        return send

    def critical(self) -> list[tuple[int, int]]:
        """(rank, position) of items, from the last one back, each of which the next waited for.

        Between two of a rank there may be Ws.
        """
        finish = self.finish()
        rank = max(range(len(finish)), key=finish.__getitem__)
        ends, lines, arrivals = self.ends, self.lines, self.arrivals
        position = len(ends[rank]) - 1
        path = []
        while position >= 0:
            path.append((rank, position))
            op = lines[rank].ops[position]
            start = ends[rank][position] - op.duration - TIE
            waited = op.first_input, op.second_input
            slot = next((s for s in waited if s and arrivals[s] >= start), 0)
            if slot:
                rank = self.orders.source_of(slot)
                position = lines[rank].made_at(slot)
            else:
                position -= 1
        return path

    def schedule(self) -> Schedule:
        """The table of this run."""
        ranks, micro_batches = self.orders.ranks, self.orders.micro_batches
        whole = self._whole()
        programs = tuple(
            program_of(self.lines[rank].word, self.filled[rank], whole[rank], rank, ranks)
            for rank in range(ranks)
        )
        return Schedule(SEARCHED, ranks, micro_batches, v_placement(ranks), programs)

    def _whole(self) -> list[set[int]]:
        """By rank, the positions of I that are one B with the W after them, and nobody waits."""
        starts = {}
        for line, ends in zip(self.lines, self.ends):
            for op, end in zip(line.ops, ends):
                starts[op.first_input] = starts[op.second_input] = end - op.duration
        whole: list[set[int]] = []
        for line, ends, filled in zip(self.lines, self.ends, self.filled):
            whole.append(set())
            after = [*filled[1:], len(line.weights)]
            for position, letter in enumerate(line.word):
                op, end, done = line.ops[position], ends[position], filled[position]
                if not INPUT <= letter < PAIR or not done == op.split < after[position]:
                    continue
                arrival = end + line.weights[done] + op.first_under_way
                slot = op.first_output
                if not slot or not (self.orders.transmission or arrival > starts[slot] + TIE):
                    whole[-1].add(position)
        return whole

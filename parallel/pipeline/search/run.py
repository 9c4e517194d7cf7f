"""When each item of given words ends: the evaluation that the search spends its time in."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from math import inf

from parallel.pipeline.schedule import Schedule
from parallel.pipeline.search.orders import TIE, Line, Orders, schedule_of


class Run:
    """The words of all ranks, run.

    ends: by rank and position. arrivals: by slot. Times are those of `simulate` wherever every
    receive is posted in time, which the lowering sees to unless two items of a rank together take
    less than a transfer; then they are earlier.
    """

    __slots__ = ("arrivals", "ends", "lines", "orders")

    def __init__(
        self,
        orders: Orders,
        lines: list[Line],
        ends: list[list[float]] | None = None,
        arrivals: list[float] | None = None,
    ) -> None:
        self.orders, self.lines = orders, lines
        self.ends = ends or [[] for _ in lines]
        slots = 1 + 4 * orders.ranks * orders.micro_batches
        self.arrivals = arrivals or [0.0] + [inf] * (slots - 1)

    def finish(self) -> list[float]:
        """The end of each rank, its optimizer included; the last of them is the makespan."""
        return [ends[-1] + after for ends, after in zip(self.ends, self.orders.after)]

    def schedule(self) -> Schedule:
        """The table of this run."""
        return schedule_of([line.word for line in self.lines], self.orders.micro_batches)

    def changed(self, rank: int, line: Line, limit: float = inf) -> Run | None:
        """The run where `rank` has another word; None if that deadlocks, or ends after `limit`.

        What has ended and arrived before the rank could begin the first other letter is as it was.
        """
        first = 0
        for old, new in zip(self.lines[rank].ops, line.ops):
            if old is not new:
                break
            first += 1
        time = self.ends[rank][first - 1] if first else 0.0
        lines = self.lines[:]
        lines[rank] = line
        if self.orders.transmission or time <= 0:
            run = Run(self.orders, lines)
        else:
            before = time - self.orders.hop - TIE
            ends = [e[: bisect_left(e, before)] for e in self.ends]
            arrivals = [x if x < time else inf for x in self.arrivals]
            run = Run(self.orders, lines, ends, arrivals)
        return run if run.follow(limit) else None

    def follow(self, limit: float = inf) -> bool:
        """Run what has not ended yet; False where ranks wait for ever.

        May be False, too, where a rank's last item ends after `limit`.
        """
        arrivals, lines = self.arrivals, self.lines
        waiting: dict[int, int] = {}
        awake = list(range(self.orders.ranks))
        send = self._channels() if self.orders.transmission else None
        while awake:
            rank = awake.pop()
            ends = self.ends[rank]
            clock = ends[-1] if ends else 0.0
            left = lines[rank].left
            for op in lines[rank].ops[len(ends) :]:
                duration, source, other, target, under_way, second, later = op
                arrival = arrivals[source]
                if arrival > clock:
                    if arrival == inf:
                        waiting[source] = rank
                        break
                    clock = arrival
                    if clock + left[-1 - len(ends)] > limit:
                        return False
                if other:
                    arrival = arrivals[other]
                    if arrival > clock:
                        if arrival == inf:
                            waiting[other] = rank
                            break
                        clock = arrival
                        if clock + left[-1 - len(ends)] > limit:
                            return False
                clock += duration
                ends.append(clock)
                if target:
                    if send:
                        under_way = send(rank, clock, target, under_way)
                    arrivals[target] = clock + under_way
                    if target in waiting:
                        awake.append(waiting.pop(target))
                    if second:
                        if send:
                            later = send(rank, clock, second, later)
                        arrivals[second] = clock + later
                        if second in waiting:
                            awake.append(waiting.pop(second))
        return not waiting

    def _channels(self) -> Callable[[int, float, int, float], float]:
        """What says how long a message sent now is under way, behind those sent before."""
        orders = self.orders
        free = [[0.0, 0.0] for _ in range(orders.ranks)]  # of the channels up and down, by rank

        def send(rank: int, time: float, slot: int, under_way: float) -> float:
            if not under_way:
                return 0.0
            down = (slot - 1) // orders.micro_batches % orders.ranks > rank
            begin = max(time, free[rank][down])
            free[rank][down] = begin + orders.transmission
            return begin - time + under_way

        return send

    def critical(self) -> list[tuple[int, int]]:
        """(rank, position) of items, from the last one back, each of which the next waited for."""
        finish = self.finish()
        rank = max(range(len(finish)), key=finish.__getitem__)
        ends, lines, arrivals = self.ends, self.lines, self.arrivals
        position = len(ends[rank]) - 1
        path = []
        while position >= 0:
            path.append((rank, position))
            op = lines[rank].ops[position]
            begin = ends[rank][position] - op[0] - TIE
            if position and ends[rank][position - 1] >= begin:
                position -= 1
                continue
            slot = next((s for s in op[1:3] if s and arrivals[s] >= begin), 0)
            if not slot:
                break
            rank = self.orders.source_of(slot)
            position = lines[rank].made_at(slot)
        return path

"""When each turn ends: the evaluation that the search spends its time in.

A rank takes its turns in order, each as soon as what it waits for has arrived. A W that fits at
least half into that wait is computed meanwhile, the oldest first; others when the memory cap wants
them done, and the rest at the end.

Times are those of `simulate` where channels are free and every receive is posted in time.
"""

from __future__ import annotations

from bisect import bisect_left
from math import inf

from parallel.schedule.table import Schedule
from parallel.study.search.chain import TIE
from parallel.study.search.compiled import Compiler, Line
from parallel.study.search.turns import NONE, Turns, program_of


class Run:
    """The turns of all ranks, run.

    ends, weights_before: by rank and turn; when it ends, and how many W come before it. gates: when
    each opens.
    """

    __slots__ = ("compiler", "ends", "gates", "lines", "weights_before")

    def __init__(self, compiler: Compiler, lines: list[Line]) -> None:
        self.compiler, self.lines = compiler, lines
        self.ends: list[list[float]] = [[] for _ in lines]
        self.weights_before: list[list[int]] = [[] for _ in lines]
        self.gates = compiler.gates()

    @property
    def order(self) -> list[Turns]:
        return [line.turns for line in self.lines]

    def finish(self) -> list[float]:
        """The end of each rank, its optimizer included; the last of them is the makespan."""
        ranks = zip(self.ends, self.weights_before, self.lines, self.compiler.chain.after)
        return [
            ends[-1] + line.weights_left[before[-1]] + after for ends, before, line, after in ranks
        ]

    @property
    def makespan(self) -> float:
        return max(self.finish())

    def changed(self, rank: int, line: Line, limit: float = inf) -> Run | None:
        """The run where `rank` takes other turns; None if that deadlocks or ends after `limit`.

        All that has ended before the rank could start the first changed turn is kept.
        """
        first = 0
        for old, new in zip(self.lines[rank].steps, line.steps):
            if old is not new:
                break
            first += 1
        time = self.ends[rank][first - 1] if first else 0.0
        run = Run(self.compiler, [*self.lines[:rank], line, *self.lines[rank + 1 :]])
        if time > 0:
            before = time - max(self.compiler.chain.transit) - TIE
            kept = [bisect_left(ends, before) for ends in self.ends]
            run.ends = [ends[:end] for ends, end in zip(self.ends, kept)]
            run.weights_before = [done[:end] for done, end in zip(self.weights_before, kept)]
            run.gates = [opened if opened < time else inf for opened in self.gates]
        return run if run.follow(limit) else None

    def follow(self, limit: float = inf) -> bool:
        """Run what has not ended yet; False where ranks wait forever.

        False, too, where a rank's work is seen to end after `limit`.
        """
        gates, lines = self.gates, self.lines
        asleep: dict[int, int] = {}
        awake = list(range(len(lines)))
        while awake:
            rank = awake.pop()
            line, ends, before = lines[rank], self.ends[rank], self.weights_before[rank]
            weights = line.weights
            clock, done = (ends[-1], before[-1]) if ends else (0.0, 0)
            for step in line.steps[len(ends) :]:
                duration, gate, other_gate, left, due, opens = step
                while done < due:
                    clock += weights[done]
                    done += 1
                if gates[other_gate] > gates[gate]:
                    gate = other_gate
                arrival = gates[gate]
                if arrival > clock:
                    if arrival == inf:
                        asleep[gate] = rank
                        break
                    while done < left and clock + 0.5 * weights[done] <= arrival:
                        clock += weights[done]
                        done += 1
                    if arrival > clock:
                        clock = arrival
                        if clock + line.work_left[len(ends)] + line.weights_left[done] > limit:
                            return False
                clock += duration
                ends.append(clock)
                before.append(done)
                for opened, transit in opens:
                    gates[opened] = clock + transit
                    if opened in asleep:
                        awake.append(asleep.pop(opened))
        return not asleep

    def critical(self) -> list[tuple[int, int]]:
        """(rank, position) of turns, from the last one back, each of which the next waited for.

        Between two of a rank there may be W.
        """
        finish = self.finish()
        rank = finish.index(max(finish))
        position = len(self.ends[rank]) - 1
        path = []
        while position >= 0:
            path.append((rank, position))
            step = self.lines[rank].steps[position]
            start = self.ends[rank][position] - step.duration - TIE
            waited = [g for g in (step.gate, step.other_gate) if g and self.gates[g] >= start]
            if waited:
                rank = self.compiler.maker_of(waited[0])
                position = self.lines[rank].maker(waited[0])
            else:
                position -= 1
        return path

    def schedule(self) -> Schedule:
        """The table of this run."""
        starts = {}
        for line, ends in zip(self.lines, self.ends):
            for step, end in zip(line.steps, ends):
                starts[step.gate] = starts[step.other_gate] = end - step.duration
        programs = []
        for line, ends, before in zip(self.lines, self.ends, self.weights_before):
            whole = {p for p in range(len(ends)) if self._is_whole(line, p, ends, before, starts)}
            programs.append(program_of(line.turns, before, whole))
        return self.compiler.chain.unfolded(programs)

    def _is_whole(
        self, line: Line, position: int, ends: list[float], before: list[int],
        starts: dict[int, float],
    ) -> bool:  # fmt: skip
        """Whether a turn is a backward whose own W comes right after it, and nobody minds to wait
        for both."""
        forward, backward = line.turns[position]
        step, done = line.steps[position], before[position]
        after = before[position + 1] if position + 1 < len(before) else len(line.weights)
        if forward != NONE or not done == step.left < after:
            return False
        end = ends[position] + self.compiler.chain.weight_grad[backward]
        return all(end + transit <= starts[gate] + TIE for gate, transit in step.opens)

"""Stretching: the same order for more micro-batches.

Between the fill and the drain of a pipeline its ranks repeat themselves. So the search works on few
micro-batches, and repeats what every rank does there with one of them, from one moment on: once for
each micro-batch more. Which moment is best is tried out.
"""

from __future__ import annotations

from bisect import bisect_left

from parallel.study.search.compiled import Compiler, Line
from parallel.study.search.run import Run
from parallel.study.search.turns import NONE, Turns

MOMENTS = 32  # how many are tried


def stretched(run: Run, compiler: Compiler) -> Run | None:
    """`run` for as many micro-batches as `compiler` has; None where its ranks do not repeat
    themselves."""
    more = compiler.chain.micro_batches - run.compiler.chain.micro_batches
    if not more:
        return run
    best: Run | None = None
    for moment in range(MOMENTS):
        time = run.makespan * (moment + 1) / (MOMENTS + 1)
        lines: list[Line] = []
        for rank, ends in enumerate(run.ends):
            line = _repeated(run, compiler, rank, bisect_left(ends, time), more)
            if line is None:
                break
            lines.append(line)
        else:
            longer = Run(compiler, lines)
            if longer.follow() and (best is None or longer.makespan < best.makespan):
                best = longer
    return best


def _repeated(run: Run, compiler: Compiler, rank: int, position: int, more: int) -> Line | None:
    """A rank's turns with those of one micro-batch, from `position` on, `more` times more."""
    turns = run.lines[rank].turns
    period = _one_micro_batch(turns[position:], len(compiler.chain.stages_of(rank)))
    if period is None:
        return None
    return compiler.line(turns[:position] + period * more + turns[position:])


def _one_micro_batch(turns: Turns, stages: int) -> Turns | None:
    """The first turns, if they have one forward and one backward of each stage."""
    forwards: set[int] = set()
    backwards: set[int] = set()
    for position, (forward, backward) in enumerate(turns):
        if forward in forwards or backward in backwards:
            return None
        forwards |= {forward} - {NONE}
        backwards |= {backward} - {NONE}
        if len(forwards) == len(backwards) == stages:
            return turns[: position + 1]
    return None

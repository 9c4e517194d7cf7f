"""What a search starts with: the handcrafted tables on its placement, or list scheduling."""

from __future__ import annotations

from dataclasses import replace

from parallel.schedule.check import peak_in_flight
from parallel.schedule.generators import GENERATORS
from parallel.schedule.table import Schedule, ScheduleError
from parallel.study.search.chain import TIE, Chain
from parallel.study.search.compiled import Compiler
from parallel.study.search.list_schedule import list_schedule
from parallel.study.search.run import Run
from parallel.study.search.turns import NONE, Turn, Turns, turns_of


def starts(chain: Chain) -> list[Schedule]:
    """The handcrafted tables on the chain's placement and under its cap, else a list schedule."""
    ranks = 1 + max(chain.placement.values())
    flows = 1 + max(flow for flow, _ in chain.placement)
    tables = []
    for generator in GENERATORS.values():
        try:
            table = generator(ranks, chain.micro_batches * flows)
        except ScheduleError:
            continue  # does not support these numbers
        held = max(peak_in_flight(table)) / table.stage_share
        if dict(table.placement) == chain.placement and held <= chain.cap + TIE:
            tables.append(table)
    if not tables:
        run = run_of(Compiler(chain), list_schedule(chain))
        tables = [replace(run.schedule(), name="list scheduling")]
    return tables


def start_of(table: Schedule, compiler: Compiler) -> Run:
    """The run of a table, its weight gradients where a run puts them.

    Where pairs pay and the table has none, its steady state gets them, if the result can be
    followed. Elsewhere pairs become a backward and then a forward, which are sooner.
    """
    order = [turns_of(program) for program in table.programs[: compiler.chain.ranks]]
    pays = compiler.pays
    if not any(turn.is_pair for turns in order for turn in turns) and any(pays):
        last = compiler.chain.stages - 1
        try:
            return run_of(compiler, [_paired(t, last) if p else t for t, p in zip(order, pays)])
        except ScheduleError:
            pass
    return run_of(compiler, [t if p else _apart(t) for t, p in zip(order, pays)])


def _paired(turns: Turns, last: int) -> Turns:
    """Every F0 B0 F1 B1, of two stages, as F0&B0 F1&B1: the steady state of ZBV.

    Not F1 B1 of the last stage, which are of one micro-batch.
    """
    paired: Turns = []
    while turns:
        (f0, _), (_, b0), (f1, _), (_, b1) = (turns[:4] + [Turn()] * 4)[:4]
        alone = [Turn(f0), Turn(NONE, b0), Turn(f1), Turn(NONE, b1)]
        if turns[:4] == alone and f0 == b0 < f1 == b1:
            paired += [Turn(f0, b0), *(alone[2:] if f1 == last else [Turn(f1, b1)])]
            turns = turns[4:]
        else:
            paired.append(turns[0])
            turns = turns[1:]
    return paired


def _apart(turns: Turns) -> Turns:
    apart: Turns = []
    for turn in turns:
        forward, backward = turn
        apart += [Turn(NONE, backward), Turn(forward)] if turn.is_pair else [turn]
    return apart


def run_of(compiler: Compiler, order: list[Turns]) -> Run:
    """The run of an order; raises ScheduleError if it cannot be followed."""
    lines = [compiler.line(turns) for turns in order]
    run = Run(compiler, [line for line in lines if line])
    if None in lines or not run.follow():
        raise ScheduleError("the order to start with cannot be followed under the memory cap")
    return run

"""What was measured, as tables for a person."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from trainer.bench.exchange_times import ALL_TO_ALLS, Mode, StepTimes
from trainer.bench.profile import Profile
from trainer.bench.throughput import compare
from trainer.bench.throughput_report import GIB, PLACES, notes, routing_of
from trainer.plan.tables import PARTS

CONVENTIONS = {"causal": "causal", "non_causal": "non-causal"}


def show(found: Profile, link_rate: str | None, balanced: bool) -> None:
    """Print tables and what they mean."""
    # As wide as the tables are, where the output is a file.
    console = Console() if Console().is_terminal else Console(width=120)
    mesh, pipeline, seed = found.config.mesh, found.config.pipeline, found.config.run.seed
    console.print(
        f"{pipeline.schedule}, pipeline {mesh.pipeline} x expert-data {mesh.expert_data} x "
        f"expert {mesh.expert}; link {link_rate or 'not limited'}; random tokens, seed "
        f"{seed}, routing {routing_of(balanced)}"
    )
    console.print(_steps_table(found))
    for mode, result in found.modes.items():
        if result.times.total(*PLACES).number:
            console.print(_exchange_table(mode, result.times))
    for line in _lines(found):
        console.print(line)


def _lines(found: Profile) -> Iterator[str]:
    """What stands below the tables."""
    comparison = compare(found.modes)
    if comparison is not None:
        yield (
            f"overlap on against off: step {comparison.speed_up:.3f} x as fast (medians); hidden "
            f"against off: {_percent(comparison.pairs_hidden)} of all-to-alls in pairs, "
            f"{_percent(comparison.all_hidden)} of all"
        )
    yield (
        f"MFU: share of {found.peak.flops / 1e12:,.3g} TFLOP/s per rank, {found.peak.source}; main "
        "model, without MTP"
    )
    yield (
        f"predicted: {found.predicted.source}; measured / predicted "
        f"{found.measured_over_predicted:.3f}"
    )
    used, reserved = found.memory.used, found.memory.reserved
    kind = "allocated by torch" if reserved else "resident"
    line = f"memory: at most {_gib(max(used))} {kind}, on rank {used.index(max(used))}"
    if reserved:
        line += f"; at most {_gib(max(reserved))} reserved"
    if found.planned_memory:
        most = max(found.planned_memory)
        where = f"pipeline rank {found.planned_memory.index(most)}"
        line += f"; planned: {_gib(most)} of tensors on {where}"
    yield line
    yield from (f"note: {note}" for note in notes(found))


def _steps_table(found: Profile) -> Table:
    """A column for each mode, and one for what is predicted."""
    results, predicted = found.modes.values(), found.predicted
    table = Table(title="steps")
    table.add_column("")
    for name in (*(f"overlap {mode}" for mode in found.modes), "predicted"):
        table.add_column(name, justify="right")
    seconds = [*(result.median_seconds for result in results), predicted.seconds]
    table.add_row("step, s (median)", *(f"{each:.3f}" for each in seconds))
    spreads = (f"{min(r.step_seconds):.3f} to {max(r.step_seconds):.3f}" for r in results)
    table.add_row("min to max", *spreads, "-")
    rates = [found.rates(each) for each in seconds]
    table.add_row("tokens/s", *(f"{r.tokens_per_step / s:,.0f}" for r, s in zip(rates, seconds)))
    table.add_row("tokens/s per rank", *(f"{r.tokens_per_second_per_gpu:,.0f}" for r in rates))
    for key, words in CONVENTIONS.items():
        tflops = (f"{r.tflops_per_gpu[key]:,.3g}" for r in rates)
        table.add_row(f"TFLOP/s per rank, {words}", *tflops)
    for key, words in CONVENTIONS.items():
        table.add_row(f"MFU, {words}", *(f"{r.mfu[key]:.1%}" for r in rates))
    table.add_row("expert load, max/mean", *(f"{r.load_max:.2f}" for r in results), "-")
    table.add_section()
    parts = [asdict(each) for each in (*(result.parts for result in results), predicted.parts)]
    wholes = [sum(each.values()) for each in parts]
    for part, words in PARTS.items():
        shares = (f"{p[part]:.3f} {p[part] / whole:6.1%}" for p, whole in zip(parts, wholes))
        table.add_row(words, *shares)
    spread = max(statistics.pstdev(r.step_seconds) / r.median_seconds for r in results)
    table.caption = (
        "a step takes as long as on its slowest rank; the steps of a mode differ by "
        f"{100 * spread:.0f} % (standard deviation). Parts are means over ranks and steps: items "
        "with their waits for all-to-alls, all other waiting in the bubble"
    )
    return table


def _exchange_table(mode: Mode, times: StepTimes) -> Table:
    table = Table(title=f"all-to-alls, overlap {mode}, seconds per step and rank")
    table.add_column("where")
    table.add_column("kind")
    columns = ("number", "in flight", "transfer", "waited", "waited for transfer")
    for column in (*columns, "hidden", "hidden transfer"):
        table.add_column(column, justify="right")
    for where in PLACES:
        kinds = [(kind, times.all_to_alls[where][kind]) for kind in ALL_TO_ALLS]
        for kind, t in [*kinds, ("together", times.total(where))]:
            if t.number:
                parts = (t.in_flight, t.transfer, t.waited, t.waited_transfer)
                shares = (_percent(t.hidden), _percent(t.hidden_transfer))
                table.add_row(where, kind, f"{t.number:g}", *(f"{p:.3f}" for p in parts), *shares)
        table.add_section()
    messages = ", ".join(f"{kind} {waited:.3f}" for kind, waited in times.messages.items())
    table.caption = (
        "hidden = 1 - waited / in flight, which contains waiting for late peers; hidden transfer "
        "= 1 - waited for transfer / transfer, both from when the last rank has started. Beside "
        f"these: computing {times.computing:.3f}, waits for messages: {messages}, elsewhere "
        f"{times.elsewhere:.3f}"
    )
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"

"""A plan as tables for a person."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich.table import Table

from trainer.plan.as_json import memory_parts
from trainer.plan.datasheets import GIB
from trainer.plan.overlap_rule import OverlapRule
from trainer.plan.plan import Plan
from trainer.plan.remedies import Remedy
from trainer.plan.traffic import Bytes, linear_of

PARTS = {
    "forward": "forward alone",
    "pairs": "forward and backward together",
    "input_gradient_and_backward": "backward alone",
    "weight_gradient": "weight gradients alone",
    "bubble": "bubble",
    "optimizer": "gradient sums and optimizer",
}

SENT = {
    "combine_back": "gradients of combine",
    "dispatch_back": "gradients of dispatch",
    "pipeline": "messages of the pipeline",
    "gradients": "sums of gradients",
    "weights": "new weights",
}


def tables(plan: Plan, found: Sequence[Remedy] | None = None) -> Iterator[Table]:
    """In the order in which they are read. found: what would make it fit, if that was asked."""
    yield summary(plan)
    yield memory_table(plan)
    if found is not None and not plan.fits:
        yield remedies_table(found)
    yield step_table(plan)
    yield traffic_table(plan)
    yield cost_table(plan)


def heading(plan: Plan) -> str:
    """What is planned, in one line."""
    return (
        f"{plan.cost.gpus:,} {plan.machine.gpu.upper()}, {plan.schedule.name}, products in "
        f"{linear_of(plan.config)}, costs by {plan.config.plan.costs}"
    )


def summary(plan: Plan) -> Table:
    """The model, the speed, and what they follow from."""
    p, rates = plan.parameters, plan.rates
    table = _two_columns(f"{plan.config.run.name}: {heading(plan)}")
    activated = f"{p.activated / 1e9:,.2f}B activated per token"
    table.add_row("parameters", f"{p.main / 1e9:,.2f}B, {activated}")
    if p.mtp:
        table.add_row("MTP modules", f"{p.mtp / 1e9:,.2f}B more")
    table.add_row("tokens per step", f"{rates.tokens_per_step:,}")
    table.add_row("step", f"{plan.step.seconds:,.3f} s")
    table.add_row("tokens per second and GPU", f"{rates.tokens_per_second_per_gpu:,.0f}")
    table.add_row("tokens per day", f"{rates.tokens_per_day / 1e9:,.1f}B")
    for name, words in (("causal", "causal attention"), ("non_causal", "non-causal attention")):
        share, tflops = rates.mfu[name], rates.tflops_per_gpu[name]
        table.add_row(f"MFU, {words}", f"{share:.1%} of bfloat16's peak, {tflops:,.0f} TFLOP/s")
    if plan.rule is not None:
        table.add_row(*_rule(plan.rule))
    return table


def _rule(rule: OverlapRule) -> tuple[str, str]:
    """On which side of DeepSeek-V4's rule a config lies: above 100 % always hidden."""
    return (
        f"all-to-alls ({rule.link}) are hidden",
        f"by a pair below {rule.pair_hides_below:.0%} of the GPU's peak, by experts alone below "
        f"{rule.experts_hide_below:.0%}",
    )


def memory_table(plan: Plan) -> Table:
    """GiB by rank; ranks that need as much are one row."""
    names = list(memory_parts(plan.memory[0]))
    limit = plan.machine.memory / GIB
    table = Table(title=f"Memory, GiB per rank, of {limit:.1f} on a GPU", title_justify="left")
    table.add_column("ranks")
    for name in (*names, "total"):
        table.add_column(name, justify="right")
    table.add_column("fits")
    host = max(rank.host for rank in plan.memory) / GIB
    if host:
        table.title = f"{table.title}; the optimizer keeps up to {host:.1f} more on the host"
    if not plan.fits:
        table.caption = "--remedies plans it with changes that need less"
    alike: dict[tuple[str, ...], list[int]] = {}
    for number, rank in enumerate(plan.memory):
        figures = (*memory_parts(rank).values(), rank.total / GIB)
        note = "yes" if rank.fits(plan.machine) else "no"
        alike.setdefault((*(f"{figure:.1f}" for figure in figures), note), []).append(number)
    for row, ranks in alike.items():
        table.add_row(_as_ranges(ranks), *row)
    return table


def remedies_table(found: Sequence[Remedy]) -> Table:
    """Changes and what the fullest rank needs with them."""
    table = Table(title="Changes that need less memory, GiB of the fullest rank")
    for name in ("options", "total", "fits"):
        table.add_column(name, justify="right" if name == "total" else "left")
    for one in found:
        fits = "yes" if one.fits else "no"
        table.add_row(" ".join(one.options), f"{one.total / GIB:.1f}", fits)
    return table


def _as_ranges(numbers: list[int]) -> str:
    """As in 0-3, 7."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in ranges)


def step_table(plan: Plan) -> Table:
    """Where the time of a step goes: mean over the ranks, and the ranks with most and least to
    do."""
    ranks = plan.step.by_rank
    busiest = min(range(len(ranks)), key=lambda rank: ranks[rank].bubble)
    idlest = max(range(len(ranks)), key=lambda rank: ranks[rank].bubble)
    table = Table(title="Seconds of a step", title_justify="left")
    table.add_column("")
    for name in ("mean", "share", f"rank {busiest}, busiest", f"rank {idlest}, idlest"):
        table.add_column(name, justify="right")
    mean, busy, idle = asdict(plan.step.parts), asdict(ranks[busiest]), asdict(ranks[idlest])
    for name, words in PARTS.items():
        share = f"{mean[name] / plan.step.seconds:.1%}"
        table.add_row(words, f"{mean[name]:.3f}", share, f"{busy[name]:.3f}", f"{idle[name]:.3f}")
    return table


def traffic_table(plan: Plan) -> Table:
    """What the rank sends that sends most."""
    totals = [sum(sent.values(), Bytes()).seconds(plan.machine) for sent in plan.traffic]
    most = totals.index(max(totals))
    table = Table(title=f"GB that rank {most} sends in a step", title_justify="left")
    table.add_column("")
    for name in ("network", "NVLink"):
        table.add_column(name, justify="right")
    for kind, sent in plan.traffic[most].items():
        words = SENT.get(kind, kind)
        table.add_row(words, f"{sent.network / 1e9:,.1f}", f"{sent.nvlink / 1e9:,.1f}")
    return table


def cost_table(plan: Plan) -> Table:
    """The whole recipe."""
    hours, cluster = plan.cost.gpu_hours, plan.config.cluster
    table = _two_columns("The whole run")
    for name, value in hours.items():
        if value:
            table.add_row(f"{name.replace('_', ' ')}, GPU-hours", f"{value:,.0f}")
    per_trillion = plan.cost.gpu_hours_per_trillion_tokens
    table.add_row("GPU-hours per trillion tokens", f"{per_trillion:,.0f}")
    table.add_row("days", f"{plan.cost.days:,.1f}")
    dollars = plan.cost.dollars(cluster)
    table.add_row(f"dollars, at {cluster.price:g} per GPU-hour", f"{dollars:,.0f}")
    table.add_row("MWh", f"{plan.cost.mwh(cluster, plan.machine):,.0f}")
    return table


def _two_columns(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    return table

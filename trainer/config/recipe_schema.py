"""The section of a config that says what changes in the course of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from trainer.config.limits import Text

_NUMBER = r"\d[\d_]*(?:\.\d+)?(?:e[+-]?\d+)?"
_UNTIL = r"(?: until (?P<count>\d[\d_]*(?:\.\d+)?)(?P<unit_size>[KMBT]?) (?P<unit>steps|tokens))?"
# PHASE of a value that is a number of any kind; BATCH of one that goes up or down in sizes.
PHASE = Text(
    rf"(?:(?P<shape>linear|cosine) (?P<first>{_NUMBER}) to )?(?P<last>{_NUMBER}){_UNTIL}",
    "phases such as `2.2e-4 until 10T tokens` or `linear 0 to 1e-3 until 2000 steps`",
)
BATCH = Text(
    r"(?:(?P<shape>linear) (?P<first>\d[\d_]*) to )?(?P<last>\d[\d_]*)"
    rf"(?(shape) by (?P<by>\d[\d_]*)){_UNTIL}",
    "phases such as `16 until 1M tokens` or `linear 16 to 64 by 8 until 10M tokens`",
)


@dataclass
class RecipeConfig:
    """What changes in the course of a run: each value by its phases, one after the other. A phase
    is a constant, or `linear A to B` or `cosine A to B`; it ends at so many steps or tokens since
    the start of the run, the last one with the run."""

    learning_rate: Annotated[list[str] | None, PHASE] = None
    """In place of the warm-up and cosine of optimizer.lr, optimizer.warmup_steps and
    optimizer.min_lr_ratio."""
    batch: Annotated[list[str] | None, BATCH] = None
    """Sequences of a step, with micro-batches as large as data.global_batch and
    pipeline.micro_batches make them; the last phase ends at data.global_batch."""
    bias_gamma: Annotated[list[str] | None, PHASE] = None
    """Step of the router bias, in place of model.moe.bias_gamma."""
    balance_alpha: Annotated[list[str] | None, PHASE] = None
    """Weight of the balance loss, in place of model.moe.balance_alpha."""
    mtp_weight: Annotated[list[str] | None, PHASE] = None
    """Weight of the mean MTP loss, in place of model.mtp.weight."""

"""What is recorded of a run, by name: docs/metrics.md says what each value is."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.config.schema import Config
from trainer.data.bits_per_byte import bits_per_byte
from trainer.report.metrics import Metrics
from trainer.run.step import StepMetrics


def record_step(metrics: Metrics, step: int, done: StepMetrics, seconds: float, c: Config) -> None:
    """The values of a step, counted from 0, that took so long."""
    recipe = done.recipe
    tokens = recipe.sequences * c.data.sequence_length
    for name, loss in done.losses.items():
        metrics.record(name, loss)
    metrics.record("total_loss", done.total_loss)
    metrics.record("balance", done.balance)
    metrics.record("load_max", done.load_max)
    metrics.record("load_unused", done.load_unused)
    metrics.record("learning_rate", recipe.learning_rate, "last")
    metrics.record("bias_gamma", recipe.bias_gamma, "last")
    metrics.record("balance_alpha", recipe.balance_alpha, "last")
    metrics.record("mtp_weight", recipe.mtp_weight, "last")
    metrics.record("sequences", recipe.sequences, "sum")
    metrics.record("gradient_norm", done.gradient_norm)
    metrics.record("skipped", int(not done.updated), "sum")
    metrics.record("tokens", tokens, "sum")
    metrics.record("tokens_per_second", tokens / seconds)
    metrics.record("seconds", seconds, "sum")
    every = c.metrics.loads_every
    if every and done.loads and (step + 1) % every == 0:
        metrics.record("loads", [_shares(loads) for loads in done.loads.values()])


def _shares(loads: list[float]) -> list[float]:
    return [round(load / sum(loads), 6) for load in loads]


def record_validation(
    metrics: Metrics, loss: float, bytes_per_token: float, source: str = ""
) -> None:
    """loss: mean nats per token. bytes_per_token: of the same text. source: of the text, where it
    has several."""
    ending = f"_{source}" if source else ""
    metrics.record(f"validation_loss{ending}", loss, "last")
    if (bits := bits_per_byte(loss, bytes_per_token)) is not None:
        metrics.record(f"validation_bits_per_byte{ending}", bits, "last")


def record_epochs(metrics: Metrics, epochs: Mapping[str, float]) -> None:
    """How often the run has gone through each source of its text."""
    for name, value in epochs.items():
        metrics.record(f"epoch_{name}" if name else "epoch", value, "last")

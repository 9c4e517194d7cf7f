"""What is recorded of a run, by name: docs/metrics.md says what each value is."""

from __future__ import annotations

from trainer.config.schema import Config
from trainer.data.bits_per_byte import bits_per_byte
from trainer.report.metrics import Metrics
from trainer.run.step import StepMetrics


def record_step(metrics: Metrics, step: int, done: StepMetrics, seconds: float, c: Config) -> None:
    """The values of a step, counted from 0, that took so long."""
    tokens = c.data.global_batch * c.data.sequence_length
    metrics.record("loss", done.loss)
    for depth, loss in enumerate(done.mtp_losses, start=1):
        metrics.record(f"mtp_{depth}_loss", loss)
    metrics.record("total_loss", total_loss(done, c))
    metrics.record("balance", done.balance)
    metrics.record("load_max", done.load_max)
    metrics.record("load_unused", done.load_unused)
    metrics.record("learning_rate", done.learning_rate, "last")
    metrics.record("gradient_norm", done.gradient_norm)
    metrics.record("tokens", tokens, "sum")
    metrics.record("tokens_per_second", tokens / seconds)
    metrics.record("seconds", seconds, "sum")
    every = c.metrics.loads_every
    if every and done.load_shares and (step + 1) % every == 0:
        metrics.record(
            "loads", [[round(share, 6) for share in layer] for layer in done.load_shares]
        )


def total_loss(done: StepMetrics, c: Config) -> float:
    """What the gradient is of: the loss, the mean MTP loss and the layers' balance, weighted."""
    mtp = sum(done.mtp_losses) / max(1, len(done.mtp_losses))
    balance = done.balance * len(done.load_shares)  # each layer adds its own
    return done.loss + c.model.mtp.weight * mtp + c.model.moe.balance_alpha * balance


def record_validation(metrics: Metrics, loss: float, bytes_per_token: float) -> None:
    """loss: mean nats per token. bytes_per_token: of the same text."""
    metrics.record("validation_loss", loss, "last")
    if (bits := bits_per_byte(loss, bytes_per_token)) is not None:
        metrics.record("validation_bits_per_byte", bits, "last")

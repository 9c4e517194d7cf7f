"""Which sinks a run has, beside the console."""

from __future__ import annotations

from pathlib import Path

import yaml

from trainer.config.schema import MetricsConfig
from trainer.report import tensorboard, weights_and_biases
from trainer.report.json_lines import JsonLines
from trainer.report.metrics import Sink
from trainer.report.wandb_identity import Identity


def require_packages(config: MetricsConfig) -> None:
    """Raise RunError unless what the sinks need is installed."""
    if config.wandb != "off":
        weights_and_biases.require_installed()
    if config.tensorboard:
        tensorboard.require_installed()


def open_sinks(
    folder: Path,
    config: MetricsConfig,
    resolved: str,
    done: int | None = None,
    wandb_id: str | None = None,
) -> list[Sink]:
    """The sinks of a run in its folder. resolved: the config, YAML. done: steps that the run has
    when it goes on, None for a new run. wandb_id: from its checkpoint. Raises RunError."""
    lines = JsonLines(folder, done)
    sinks: list[Sink] = [lines]
    if config.wandb != "off":
        identity = Identity.of(folder, done or 0, lines.reached, wandb_id)
        settings = yaml.safe_load(resolved)
        sinks.append(weights_and_biases.WeightsAndBiases(folder, config.wandb, settings, identity))
    if config.tensorboard:
        sinks.append(tensorboard.TensorBoard(folder, resolved, done or 0))
    return sinks

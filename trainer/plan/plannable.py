"""What no plan can be made of."""

from __future__ import annotations

from trainer.config.schema import Config
from trainer.errors import ConfigError


def require_plannable(config: Config) -> None:
    """Raise ConfigError for a config whose costs are not known here."""
    if config.mesh.context > 1:
        raise ConfigError(
            f"mesh.context = {config.mesh.context} cannot be planned: count a step of it with "
            "launch/train.py --dry-run, or plan with mesh.context = 1"
        )

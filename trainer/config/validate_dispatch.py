"""What a way of tokens to their experts asks of a config."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.schema import Config

TILE = 128  # that of parallel/ops/fp8/tiles.py, which this room, without torch, does not import


def dispatch_problems(config: Config) -> Iterator[str]:
    """What is wrong with mesh.dispatch, each problem one line."""
    if config.mesh.dispatch == "hierarchical":
        yield from _node_problems(config)
    if config.mesh.dispatch == "deepep":
        yield from _deepep_problems(config)


def _deepep_problems(config: Config) -> Iterator[str]:
    """What keeps DeepEP from carrying tokens. Whether it is installed is seen when a run opens it:
    plans are made elsewhere."""
    or_not = "or mesh.dispatch to hierarchical, which sends as much between nodes"
    if config.run.device == "cpu":
        yield f"mesh.dispatch = deepep needs GPUs: set run.device to cuda, {or_not}"
    if config.precision.parameters != "bfloat16":
        yield (
            "mesh.dispatch = deepep carries bfloat16 only, but precision.parameters is "
            f"{config.precision.parameters}: set that to bfloat16, {or_not}"
        )
    if config.mesh.dispatch_dtype == "fp8" and config.model.dim % TILE:
        yield (
            f"mesh.dispatch = deepep carries rows in fp8 by tiles of {TILE}, which do not divide "
            f"model.dim = {config.model.dim}: set mesh.dispatch_dtype to same, {or_not}"
        )
    if config.cluster.communication_sms % 2:
        yield (
            "mesh.dispatch = deepep needs an even cluster.communication_sms, got "
            f"{config.cluster.communication_sms}"
        )


def _node_problems(config: Config) -> Iterator[str]:
    """What keeps a token from going by nodes."""
    here, ranks = config.cluster.gpus_per_node, config.mesh.expert
    wanted = "mesh.dispatch = hierarchical needs cluster.gpus_per_node"
    if here is None:
        yield f"{wanted}, the ranks of a node: set it, or mesh.dispatch to all_to_all"
    elif ranks % here or not 1 < here < ranks:
        yield (
            f"{wanted} between 1 and mesh.expert = {ranks}, and to divide it, got {here}: set "
            "mesh.dispatch to all_to_all where the ranks are on one node or each on its own"
        )

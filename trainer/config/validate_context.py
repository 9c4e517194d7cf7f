"""What sharing sequences between ranks asks of a config."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.derived import mesh_of
from trainer.config.schema import Config


def context_problems(config: Config) -> Iterator[str]:
    """What is wrong with mesh.context, each problem one line."""
    context, data = config.mesh.context, mesh_of(config).data
    if context == 1:
        return
    if data % context:
        yield (
            f"mesh.context = {context} must divide the {data} data ranks (mesh.expert_data x "
            "mesh.expert)"
        )
    length = config.data.sequence_length
    if length % (2 * context):
        least = -(-length // (2 * context)) * 2 * context
        yield (
            f"data.sequence_length = {length} cannot be shared by mesh.context = {context} ranks, "
            f"two parts each: set it to a multiple of {2 * context}, such as {least}"
        )
    if config.data.mask_documents:
        yield "data.mask_documents and mesh.context are not possible together: set one of them off"
    if config.metrics.sample_every:
        yield (
            "metrics.sample_every writes texts with whole sequences on each rank: set it to 0 with "
            f"mesh.context = {context}"
        )

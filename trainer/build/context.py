"""The ranks that share sequences, as a rank sees them."""

from __future__ import annotations

import torch
import torch.distributed as dist

from parallel.context.chunks import Chunks
from parallel.context.exchange import ContextGroup
from parallel.ranks.mesh import Mesh
from trainer.build.ops import make_wire
from trainer.config.schema import Config


def context_here(
    config: Config,
    mesh: Mesh,
    rank: int,
    groups: tuple[dist.ProcessGroup, dist.ProcessGroup] | None,
    device: torch.device,
) -> ContextGroup | None:
    """groups: of rows and of counts; None where each sequence is on one rank."""
    if groups is None:
        return None
    chunks = Chunks(mesh.context_rank(rank), mesh.context, config.data.sequence_length)
    return ContextGroup(*groups, chunks, make_wire(config, device).add_rows)

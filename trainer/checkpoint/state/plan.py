"""How torch.distributed.checkpoint plans fragments: what a rank writes, and which parts of what was
written it needs, whatever layout wrote it.

What is saved under one key is a kind of state of a whole tensor, flattened; each fragment is a
chunk of it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from typing import Any

from torch import Size, Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, LoadPlan, LoadPlanner, SavePlan
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    ReadItem,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from trainer.errors import CheckpointError
from trainer.optim.state import Fragment


def key_of(fragment: Fragment) -> str:
    """The key under which it is saved."""
    return f"{fragment.kind}/{fragment.name}"


def by_key(fragments: Iterable[Fragment]) -> dict[str, list[Fragment]]:
    """The fragments of each key; those without elements are left out."""
    state: dict[str, list[Fragment]] = {}
    for fragment in fragments:
        if len(fragment.values):
            state.setdefault(key_of(fragment), []).append(fragment)
    return state


class SaveFragments(DefaultSavePlanner):
    """Plans the writing of all fragments of the state that it is given, as `by_key` makes it."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def create_local_plan(self) -> SavePlan:
        items = [
            WriteItem(
                index=MetadataIndex(key, Size([fragment.start])),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    _chunk(fragment), TensorProperties(fragment.values.dtype), _size(fragment)
                ),
            )
            for key, fragments in self.state_dict.items()
            for fragment in fragments
        ]
        return SavePlan(items)

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return _values(self.state_dict[index.fqn], index)


class LoadFragments(LoadPlanner):
    """Plans the reading of every element of the fragments of a state.

    Raises CheckpointError, while it plans, where any is not in the checkpoint.
    """

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        assert metadata is not None
        self._state: dict[str, list[Fragment]] = state_dict
        self._stored = metadata.state_dict_metadata

    def create_local_plan(self) -> LoadPlan:
        return LoadPlan(
            [i for key, wanted in self._state.items() for i in self._reads(key, wanted)]
        )

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise CheckpointError(f"{read_item.dest_index.fqn}: is no tensor")

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        values = _values(self._state[read_item.dest_index.fqn], read_item.dest_index)
        return values.narrow(0, read_item.dest_offsets[0], read_item.lengths[0])

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Nothing is left to do: the elements were read into their place."""

    def _reads(self, key: str, wanted: list[Fragment]) -> list[ReadItem]:
        stored = self._stored.get(key)
        if not isinstance(stored, TensorStorageMetadata):
            raise CheckpointError(f"{key} is missing")
        if stored.size != _size(wanted[0]):
            raise CheckpointError(
                f"{key} has {stored.size.numel():,} elements, expected {_size(wanted[0])[0]:,}"
            )
        reads = create_read_items_for_chunk_list(key, stored, list(map(_chunk, wanted)))
        if sum(read.lengths[0] for read in reads) != sum(len(one.values) for one in wanted):
            raise CheckpointError(f"{key} is there in part only")
        return reads


def _size(fragment: Fragment) -> Size:
    return Size([math.prod(fragment.shape)])


def _chunk(fragment: Fragment) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(Size([fragment.start]), Size([len(fragment.values)]))


def _values(fragments: list[Fragment], index: MetadataIndex) -> Tensor:
    """The elements of the fragment that starts where `index` says."""
    assert index.offset is not None
    return next(one.values for one in fragments if one.start == index.offset[0])

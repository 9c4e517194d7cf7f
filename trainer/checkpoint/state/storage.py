"""Where torch.distributed.checkpoint writes to and reads from: a data file for each rank, and JSON.

The library's own file system storage pickles its metadata; nothing here does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import (
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    StorageReader,
    StorageWriter,
)
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from trainer.checkpoint.hf.writer import sync
from trainer.checkpoint.state.data_file import DataFile, open_data_file, write_data_file
from trainer.checkpoint.state.index import About, Index, data_file, write_about, write_index
from trainer.checkpoint.state.steps import PartialStep


class FragmentWriter(StorageWriter):
    """Writes one checkpoint.

    open_step: makes the folder that is filled; called on the first rank, whose answer the others
    get with their plan. about: on the first rank only. wrote(n): this rank has written n more
    bytes. When it is written, the first rank has: nbytes, of the data of all ranks; warning, what
    went wrong after that.
    """

    def __init__(
        self,
        rank: int,
        open_step: Callable[[], PartialStep],
        about: About | None,
        wrote: Callable[[int], None],
    ) -> None:
        self._rank, self._open_step, self._about, self._wrote = rank, open_step, about, wrote
        self._step: PartialStep | None = None
        self.nbytes, self.warning = 0, ""

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing: each writer writes once."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing: the coordinator is the first rank."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self._step = self._open_step()
        return [replace(plan, storage_data=str(self._step.partial)) for plan in plans]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results: list[WriteResult] = []
        if plan.items:
            path = Path(plan.storage_data) / data_file(self._rank)
            tensors = [(_name(item), planner.resolve_data(item)) for item in plan.items]
            entries = write_data_file(path, tensors, self._wrote)  # type: ignore[arg-type]
            results = [
                WriteResult(item.index, entry.nbytes, entry)
                for item, entry in zip(plan.items, entries, strict=True)
            ]
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        assert self._step is not None and self._about is not None
        written = [result for of_rank in results for result in of_rank]
        partial = self._step.partial
        write_index(partial, metadata, {one.index: one.storage_data for one in written})
        write_about(partial, self._about)
        sync(partial)
        self._step.commit()
        self.nbytes = sum(one.size_in_bytes for one in written)
        try:
            self._step.delete_others()
        except OSError as error:
            where = error.filename or "older checkpoints"
            self.warning = f"cannot delete {where}: {error.strerror or error}"

    def discard(self) -> None:
        """Remove what was not finished."""
        if self._step is not None:
            self._step.discard()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False


class FragmentReader(StorageReader):
    """Reads from a whole checkpoint. read(n): n more bytes have been read."""

    def __init__(self, folder: Path, index: Index, read: Callable[[int], None]) -> None:
        self._folder, self._index, self._read = folder, index, read

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing: there is one checkpoint to read."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._index.metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing: every rank reads by itself."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        index = self._index
        with ExitStack() as stack:
            files: dict[str, DataFile] = {}
            for item in plan.items:
                entry = index.entries[item.storage_index]
                if entry.file not in files:
                    path, size = self._folder / entry.file, index.sizes[entry.file]
                    files[entry.file] = stack.enter_context(open_data_file(path, size))
                stored = index.metadata.state_dict_metadata[item.storage_index.fqn]
                assert isinstance(stored, TensorStorageMetadata)
                target = planner.resolve_tensor(item)
                dtype, start = stored.properties.dtype, item.storage_offsets[0]
                name = item.storage_index.fqn
                self._read(files[entry.file].read_into(target, entry, dtype, start, name))
                planner.commit_tensor(item, target)
        return _done(None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False


def _name(item: WriteItem) -> str:
    """What a fragment is called in a data file, for people who look into one."""
    assert item.tensor_data is not None
    start, length = item.tensor_data.chunk.offsets[0], item.tensor_data.chunk.sizes[0]
    return f"{item.index.fqn}[{start}:{start + length}]"


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future

"""The real training step of one rank of a world, in one process, at the real sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from parallel.ranks.process import Process
from parallel.tape.recorder import What
from trainer.build.layout import Layout, build
from trainer.config.derived import mesh_of
from trainer.config.schema import Config
from trainer.dry.distinct import distinct_items
from trainer.dry.observer import Observer
from trainer.dry.record import Record, Where
from trainer.dry.routing import BalancedRouting
from trainer.dry.world import fake_world
from trainer.model.stage import MicroBatch
from trainer.objective.pretraining import DOCUMENTS, TOKENS
from trainer.recipe.progress import Progress
from trainer.run.step import Trainer

Progressed = Callable[[str], None]
"""Told what the rank does from now on."""


def dry_step(
    config: Config,
    rank: int,
    device: torch.device,
    progressed: Progressed = lambda doing: None,
    distinct: bool = False,
) -> Record:
    """Build rank `rank` of the world of `config` and run one step of it, with nothing computed.

    The step has as many micro-batches as pipeline.micro_batches says. device: as `pretended_gpu`
    gives it. distinct: run one item of each kind only (see distinct.py); memory is then not that of
    a step. Raises DryRunError for tensors on different devices, and what the program raises.
    """
    mesh, start = mesh_of(config), time.perf_counter()
    config = with_micro_batches(config, config.pipeline.micro_batches)
    config = replace(config, model=replace(config.model, init_from=None))
    record = Record(rank, mesh.world, config.pipeline.micro_batches)
    observer = Observer(record, device, routing_of(config))
    process = Process(rank, mesh.world, rank, mesh.world)
    with fake_world(rank, mesh.world, device), observer:
        progressed("building the rank")
        layout = build(config, process, device)
        _categorise(observer, layout)
        record.calls.clear()
        record.waits.clear()
        record.start = observer.memory.now()
        observer.memory.forget_peak()
        trainer = Trainer(layout, _Follower(observer, progressed))
        if distinct:
            trainer.executors = {
                number: replace(each, program=distinct_items(each.schedule, each.program))
                for number, each in trainer.executors.items()
            }
        (executor,) = trainer.executors.values()
        record.items = [step.item for step in executor.program]
        with _layers_followed(observer, layout):
            trainer.step(Progress(), _micro_batch(config, layout))
        observer.memory.look()
        memory = observer.memory
        record.peak, record.peaks = memory.peak, dict(memory.peaks)
        record.peak_where = memory.peak_where
    record.seconds = time.perf_counter() - start
    return record


def routing_of(config: Config) -> BalancedRouting:
    """The routing that is assumed."""
    moe = config.model.moe
    return BalancedRouting(moe.experts, moe.experts // config.mesh.expert, moe.top_k)


def with_micro_batches(config: Config, micro_batches: int) -> Config:
    """The same with steps of so many micro-batches per data rank, all alike."""
    row = config.data.global_batch // config.pipeline.micro_batches
    return replace(
        config,
        data=replace(config.data, global_batch=row * micro_batches),
        pipeline=replace(config.pipeline, micro_batches=micro_batches),
        recipe=replace(config.recipe, batch=None),
    )


def _categorise(observer: Observer, layout: Layout) -> None:
    """What is there before the step, by what it is for."""
    memory, shares = observer.memory, layout.gradients.shares
    memory.look()
    memory.is_for("weights", (share.bucket.values for share in shares))
    memory.is_for("gradients", (share.bucket.gradient for share in shares))
    memory.is_for("buffers", layout.part.buffers())
    values = {share.bucket.values.untyped_storage()._cdata for share in shares}
    state = (fragment.values for fragment in layout.optimizer.state())
    memory.is_for(
        "optimizer", (each for each in state if each.untyped_storage()._cdata not in values)
    )
    memory.category = "activations"


def _micro_batch(config: Config, layout: Layout) -> Callable[[int], MicroBatch]:
    length = config.data.sequence_length + 1 + config.model.mtp.depth
    tokens = torch.zeros((layout.sequences, length), dtype=torch.int64)
    return lambda number: {TOKENS: tokens, DOCUMENTS: tokens}


@contextmanager
def _layers_followed(observer: Observer, layout: Layout) -> Iterator[None]:
    """Keep track of the layer that a forward pass is in: events name it only at exchanges."""

    def enters(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            observer.where = observer.where._replace(layer=name)
            observer.memory.look()

        return hook

    part = layout.part
    depth = layout.config.model.layers
    named = {
        f"layer {name}" if int(name) < depth else f"MTP {int(name) - depth + 1}": layer
        for name, layer in part.layers.items()
    }
    hooks = [layer.register_forward_pre_hook(enters(name)) for name, layer in named.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Follower:
    """A recorder that keeps the observer's `where` up to date."""

    def __init__(self, observer: Observer, progressed: Progressed) -> None:
        self.observer, self.progressed, self.item = observer, progressed, 0

    def note(self, doing: str) -> None:
        self.progressed(doing)
        self.observer.memory.look()
        if doing.startswith("item "):
            self.item += 1
            self.observer.where = Where(self.item)
            return
        self.observer.where = Where(0, doing)
        self.observer.memory.category = "other"

    @contextmanager
    def span(self, label: str, what: What, name: str, layer: str = "") -> Iterator[None]:
        self.observer.where = Where(self.item, label.removesuffix("&"), layer)
        if what in ("start", "compute"):  # before these, outputs may have been freed
            self.observer.memory.look()
        yield

    def flight(self, label: str, name: str, start: float, pending: object) -> None:
        return None

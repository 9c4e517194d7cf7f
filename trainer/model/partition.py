"""Which layers each stage of the pipeline holds, and so where each parameter lives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from parallel.reduce.copies import Home
from trainer.config.schema import ModelConfig


def layer_name(index: int) -> str:
    """The name of a layer or an MTP module in the model; those of its parameters start with it."""
    return f"layers.{index}"


def released_layer(index: int) -> str:
    """What the names of a layer's tensors start with in the released checkpoints."""
    return f"model.{layer_name(index)}."


def moe_layers(model: ModelConfig) -> range:
    """The layers with routed experts, those of MTP modules included."""
    return range(model.dense_layers, model.layers + model.mtp.depth)


@dataclass(frozen=True)
class Partition:
    """layers: of each stage by depth, as the numbers of its first layer and of the one after its
    last. mtp_depth: MTP modules; they and the head live in the last stage, numbered on after the
    last layer as in the released checkpoints."""

    layers: tuple[tuple[int, int], ...]
    mtp_depth: int

    @property
    def last(self) -> int:
        """The last stage."""
        return len(self.layers) - 1

    def stage_layers(self, stage: int) -> range:
        return range(*self.layers[stage])

    def mtp_layers(self) -> range:
        end = self.layers[-1][1]
        return range(end, end + self.mtp_depth)

    def embedding_stages(self) -> frozenset[int]:
        """Stages that read the embedding: the first, and the last where MTP embeds tokens."""
        return frozenset({0, self.last} if self.mtp_depth else {0})

    def home(self, name: str) -> Home:
        """Where the parameter called `name` lives."""
        if name.startswith("embed_tokens."):
            return Home(self.embedding_stages())
        if not name.startswith("layers."):
            return Home(frozenset({self.last}))
        layer = int(name.split(".")[1])
        expert = ".mlp.experts." in name
        for stage in range(len(self.layers)):
            if layer in self.stage_layers(stage):
                return Home(frozenset({stage}), expert)
        return Home(frozenset({self.last}), expert)

    def homes(self) -> Iterator[Home]:
        """Every home that a parameter may have."""
        yield Home(self.embedding_stages())
        for stage in range(len(self.layers)):
            for expert in (False, True):
                yield Home(frozenset({stage}), expert)


def partition_layers(
    layers: int, stages: int, mtp_depth: int, layers_per_stage: list[int] | None = None
) -> Partition:
    """Spread layers over stages: as given, or evenly, earlier stages taking one more each where it
    does not divide, since the last has the head and MTP."""
    counts = layers_per_stage or [
        layers // stages + (stage < layers % stages) for stage in range(stages)
    ]
    ends = [sum(counts[: stage + 1]) for stage in range(stages)]
    return Partition(tuple(zip([0, *ends[:-1]], ends)), mtp_depth)

"""The models that benchmarks measure, by name: DeepSeek-V3's parts at sizes that one core trains.

Widths follow from that of the model, in the proportions of configs/models/tiny_moe.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.config.schema import (
    AttentionConfig,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    OptimizerConfig,
    PipelineConfig,
    PrecisionConfig,
)

HEAD = 32  # width of a head's query and key without position, and of its value


@dataclass(frozen=True)
class Size:
    """A model with experts, and a step of it. sequences: of a step."""

    dim: int
    layers: int
    moe: MoEConfig
    sequence_length: int
    sequences: int
    micro_batches: int

    def config(self) -> Config:
        """A run of it on one process."""
        return Config(
            model=ModelConfig(
                layers=self.layers,
                dense_layers=1,
                dim=self.dim,
                dense_dim=3 * self.dim,
                attention=_attention(self.dim),
                moe=self.moe,
            ),
            data=DataConfig(sequence_length=self.sequence_length, global_batch=self.sequences),
            pipeline=PipelineConfig(schedule="1f1b", micro_batches=self.micro_batches),
            optimizer=OptimizerConfig(lr=3e-3, warmup_steps=20),
        )


def _experts(experts: int, top_k: int, groups: int, expert_dim: int) -> MoEConfig:
    return MoEConfig(
        experts=experts,
        top_k=top_k,
        groups=groups,
        top_groups=groups // 2,
        expert_dim=expert_dim,
        scale=2.5,
        bias_gamma=0.01,
    )


SIZES: Mapping[str, Size] = {
    "1.7M": Size(128, 4, _experts(8, 2, 2, 128), 128, 16, 2),
    "12M": Size(256, 7, _experts(16, 4, 4, 128), 512, 4, 1),
    "63M": Size(512, 9, _experts(16, 4, 4, 256), 512, 3, 1),
}
"""By their parameters, MTP not counted; steps of about 0.2, 1 and 4 seconds on one core."""


def dense(width: int, ranks: int = 1, micro_batches: int = 16) -> Config:
    """A run of eight layers without experts on a pipeline of `ranks`, micro-batches of one short
    sequence: the narrower, the more of a step is not products."""
    layers = 8
    return Config(
        model=ModelConfig(
            layers=layers,
            dense_layers=layers,
            dim=width,
            dense_dim=3 * width,
            attention=_attention(width),
        ),
        mesh=MeshConfig(pipeline=ranks),
        data=DataConfig(sequence_length=128, global_batch=micro_batches),
        pipeline=PipelineConfig(schedule="1f1b", micro_batches=micro_batches),
    )


def v3_part(divisor: int = 8) -> Config:
    """DeepSeek-V3's layers with every width over `divisor` (heads are fewer, not narrower), their
    experts on eight ranks. A token goes to eight experts on as many ranks; V3's go to 7.4 of 64."""
    ranks = 8
    return Config(
        model=ModelConfig(
            dim=7168 // divisor,
            attention=AttentionConfig(
                heads=128 // divisor,
                q_lora_rank=1536 // divisor,
                kv_lora_rank=512 // divisor,
                nope_head_dim=128,
                rope_head_dim=64,
                v_head_dim=128,
            ),
            moe=MoEConfig(experts=ranks, top_k=ranks, expert_dim=2048 // divisor, scale=2.5),
        ),
        mesh=MeshConfig(expert=ranks),
        data=DataConfig(sequence_length=512, global_batch=ranks),
        pipeline=PipelineConfig(schedule="1f1b", micro_batches=1),
        precision=PrecisionConfig("bfloat16"),
    )


def _attention(dim: int) -> AttentionConfig:
    return AttentionConfig(
        heads=max(1, dim // HEAD),
        q_lora_rank=dim // 2,
        kv_lora_rank=dim // 4,
        nope_head_dim=HEAD,
        rope_head_dim=HEAD // 2,
        v_head_dim=HEAD,
    )

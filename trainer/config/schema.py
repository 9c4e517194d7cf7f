"""The configuration of a run: typed dataclasses, one a section. No torch in here, so that a bad
config is reported before anything slow is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

StorageType: TypeAlias = Literal["float32", "float64", "bfloat16", "fp8"]
"""What weights are stored as in a checkpoint."""


@dataclass
class RunConfig:
    """What a run is called, how long it is, what it runs on."""

    name: str = "run"
    """Name of the run; its folder is DIR/NAME."""
    dir: str = "runs"
    """Folder that holds the run folders."""
    overwrite: bool = False
    """Replace the run folder if it exists."""
    steps: int = 100
    """Optimizer steps."""
    seed: int = 0
    """Seed of the initial weights and of the order of the data."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto takes CUDA where there is a GPU for each local process, else the CPU."""
    dtype: Literal["float32", "float64"] = "float32"
    """Type of weights, activations and gradients."""
    timeout: float = 600.0
    """Seconds that a collective may take before the run gives up."""
    io_timeout: float = 7200.0
    """Seconds that ranks wait for the slowest to read text or weights, or to save them."""


@dataclass
class MeshConfig:
    """Layout of the processes: world size = pipeline x expert_data x expert."""

    pipeline: int = 1
    """Pipeline ranks."""
    expert: int = 1
    """Ranks that the experts of a layer are spread over; must divide model.moe.experts."""
    expert_data: int = 1
    """Copies of each expert; data-parallel ranks = expert_data x expert."""


@dataclass
class PipelineConfig:
    """The pipeline schedule."""

    schedule: Literal[
        "dualpipe", "dualpipev", "1f1b", "gpipe", "interleaved", "zb-h1", "zb-h2", "zbv"
    ] = "1f1b"
    """Schedule of the micro-batches."""
    schedule_file: str | None = None
    """A schedule table as `launch/simulate.py --table` writes it; takes the place of schedule."""
    micro_batches: int = 4
    """Micro-batches a step on each data-parallel rank, in all flows together."""
    overlap: bool = True
    """Run overlapped pairs interleaved, so that collectives hide behind computation."""
    layers_per_stage: list[int] | None = None
    """Layers of each stage by depth; spread evenly when not given."""


@dataclass
class RecomputeConfig:
    """What is computed again in the backward instead of kept."""

    norm: bool = False
    """Outputs of every RMSNorm."""
    mla_up: bool = False
    """Queries, keys and values that MLA projects up from its latents."""
    swiglu: bool = False
    """Outputs of SwiGLU."""


@dataclass
class YarnConfig:
    """Longer contexts by YaRN (arXiv 2309.00071): rotary frequencies stretched, softmax scaled."""

    factor: float = 1.0
    """Stretch of the context; 1 switches YaRN off (40 in V3)."""
    original_length: int = 4096
    """Positions that the model was trained on before."""
    beta_fast: float = 32.0
    """Pairs that turn more often than this within original_length keep their frequency."""
    beta_slow: float = 1.0
    """Pairs that turn less often than this within original_length are slowed by factor."""
    mscale: float = 1.0
    """Scale of the rotary part: 0.1 x mscale x ln(factor) + 1, over the same of mscale_all_dim; 0
    is not given, as in config.json."""
    mscale_all_dim: float = 1.0
    """Scale of the softmax: (0.1 x mscale_all_dim x ln(factor) + 1) squared; 0 leaves it alone."""


@dataclass
class AttentionConfig:
    """Multi-head latent attention (MLA)."""

    heads: int = 4
    """Attention heads."""
    q_lora_rank: int | None = None
    """Width of the query latent; null projects queries directly."""
    kv_lora_rank: int = 32
    """Width of the key-value latent."""
    nope_head_dim: int = 16
    """Width of a head's query and key without position."""
    rope_head_dim: int = 16
    """Width of a head's query, and of the shared key, with rotary position; even."""
    v_head_dim: int = 16
    """Width of a head's value."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    yarn: YarnConfig = field(default_factory=YarnConfig)


@dataclass
class MoEConfig:
    """Mixture of experts."""

    experts: int = 8
    """Routed experts of a layer."""
    shared_experts: int = 1
    """Experts that see every token."""
    top_k: int = 2
    """Routed experts a token."""
    groups: int = 1
    """Groups of routed experts; must divide experts."""
    top_groups: int = 1
    """Groups that a token may choose experts from."""
    expert_dim: int = 128
    """Inner width of one expert."""
    score: Literal["sigmoid", "softmax"] = "sigmoid"
    """Router scores: sigmoid as DeepSeek-V3, softmax as V2."""
    normalise: bool = True
    """Divide a token's routing weights by their sum."""
    scale: float = 1.0
    """Factor on the routing weights (2.5 in V3)."""
    bias_gamma: float = 0.001
    """Step of the router bias that balances the experts without a loss; 0 leaves it alone."""
    balance_alpha: float = 0.0001
    """Weight of the sequence-wise balance loss."""


@dataclass
class MTPConfig:
    """Multi-token prediction."""

    depth: int = 0
    """MTP modules: extra tokens predicted; 0, 1 or 2."""
    weight: float = 0.3
    """Weight of the mean MTP loss."""


@dataclass
class ModelConfig:
    """The architecture of DeepSeek-V3, at any size."""

    vocab_size: int = 257
    """Size of the vocabulary; 257 for bytes and the end of a document."""
    layers: int = 4
    """Transformer layers, MTP modules not counted."""
    dense_layers: int = 1
    """First layers with a dense MLP in place of experts."""
    dim: int = 128
    """Model width."""
    dense_dim: int = 384
    """Inner width of the dense MLP."""
    norm_eps: float = 1e-6
    """Epsilon of RMSNorm."""
    init_std: float = 0.02
    """Standard deviation of the initial matrices (0.006 in V3)."""
    init_from: str | None = None
    """Checkpoint folder in the Hugging Face layout to start from, in place of random weights."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    moe: MoEConfig = field(default_factory=MoEConfig)
    mtp: MTPConfig = field(default_factory=MTPConfig)


@dataclass
class DataConfig:
    """Text and batches."""

    path: str | None = None
    """A text file, a folder of them, or JSON lines (.jsonl; .gz and .zst too); the source text of
    Python's standard library when not given."""
    text_field: str = "text"
    """Field of a JSON line that holds the text."""
    tokenizer: str | None = None
    """A tokenizer.json, or a folder with one; bytes when not given."""
    sequence_length: int = 128
    """Tokens of a sequence."""
    global_batch: int = 16
    """Sequences of a step, over all ranks."""
    validation_fraction: float = 0.05
    """Share of the documents that is held out."""


@dataclass
class OptimizerConfig:
    """AdamW with decoupled weight decay, and the schedule of its learning rate."""

    lr: float = 1e-3
    """Peak learning rate."""
    min_lr_ratio: float = 0.1
    """Final learning rate over the peak."""
    warmup_steps: int = 20
    """Steps of linear warm-up; cosine decay follows, to the last step."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the two moments."""
    eps: float = 1e-8
    """Added to the denominator."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices; none on norms and the router bias."""
    clip: float = 1.0
    """Limit of the global gradient norm; 0 switches clipping off."""


@dataclass
class MetricsConfig:
    """What is reported, and when."""

    log_every: int = 10
    """Steps between lines on the console; metrics.jsonl has every step."""
    eval_every: int = 0
    """Steps between evaluations; 0 evaluates at the end only."""
    eval_sequences: int = 64
    """Held-out sequences of an evaluation; fewer if there are fewer."""
    loads_every: int = 1
    """Steps between rows of metrics.jsonl that have each expert's load; 0 leaves it out."""
    picture: bool = True
    """Draw the run at its end: RUN/run.png."""
    sample_every: int = 0
    """Steps between texts that the model writes, greedily, while it trains; 0 writes none."""
    sample_prompt: str = ""
    """Text that samples go on from; empty is the start of a document."""
    sample_tokens: int = 80
    """New tokens of a sample."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Also write to Weights & Biases: offline keeps files in the run folder, online sends them."""


@dataclass
class CheckpointConfig:
    """What is saved."""

    export_hf: bool = True
    """At the end, save the weights as a checkpoint in the Hugging Face layout: RUN/weights."""
    export_dtype: StorageType = "float32"
    """Type of the saved weights; fp8 is for matrices, in blocks of 128 x 128, the rest bfloat16."""


@dataclass
class Config:
    """A whole run."""

    run: RunConfig = field(default_factory=RunConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

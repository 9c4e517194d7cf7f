"""The configuration of a run: typed dataclasses, one per section, the limits of a value beside its
field. No torch in here, so that a bad config is reported before anything slow is imported.

Upper limits are far above what is trained anywhere, and low enough that whatever is within them is
built, or refused for another reason, within seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from trainer.config.cluster_schema import ClusterConfig as ClusterConfig
from trainer.config.cluster_schema import PlanConfig as PlanConfig
from trainer.config.limits import FOLDER_NAME, LINE, SOURCE, TEXT, Range

# Each section of a config can be imported from here.
from trainer.config.model_schema import AttentionConfig as AttentionConfig
from trainer.config.model_schema import ModelConfig as ModelConfig
from trainer.config.model_schema import MoEConfig as MoEConfig
from trainer.config.model_schema import MTPConfig as MTPConfig
from trainer.config.model_schema import YarnConfig as YarnConfig
from trainer.config.recipe_schema import RecipeConfig as RecipeConfig

StorageType: TypeAlias = Literal["float32", "float64", "bfloat16", "fp8"]
"""What weights are stored as in a checkpoint."""


@dataclass
class RunConfig:
    """What a run is called, how long it is, what it runs on."""

    name: Annotated[str, FOLDER_NAME] = "run"
    """Name of the run; its folder is DIR/NAME, or DIR/NAME-2 and so on where that is taken."""
    dir: Annotated[str, LINE] = "runs"
    """Folder that holds the run folders."""
    overwrite: bool = False
    """Replace the run in DIR/NAME, if there is one; its weights stay until this run has its own."""
    steps: Annotated[int, Range(1, 10**9)] = 100
    """Optimizer steps."""
    tokens: Annotated[int | None, Range(1, 10**18)] = None
    """Length in tokens, rounded up to whole steps; takes the place of steps."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of the initial weights and of the order of the data."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto takes CUDA where there is a GPU for each local process, else the CPU."""
    attention: Literal["auto", "flash3", "cudnn", "flash", "efficient", "math"] = "auto"
    """Kernel of attention: flash3 is FlashAttention 3, where it is installed, the others torch's;
    auto takes the first that runs in the model's shape and type. A CPU has flash and math."""
    kernels: Literal["auto", "torch", "triton"] = "auto"
    """What multiplies in fp8, adds weight gradients of experts and computes their SwiGLU on a GPU:
    Triton kernels, or torch's, by which fp8 is emulated; auto takes triton for fp8 where it is
    installed. A CPU has torch's."""
    compile: bool = False
    """Compile norms and SwiGLU with torch.compile, in the first step; it takes a compiler."""
    timeout: Annotated[float, Range(above=0, most=1e6)] = 600.0
    """Seconds that a collective may take before the run gives up."""
    io_timeout: Annotated[float, Range(above=0, most=1e6)] = 7200.0
    """Seconds that ranks wait for the slowest to read text or weights, or to save them."""
    restarts: Annotated[int, Range(0, 10**6)] = 0
    """How often a run whose processes have failed is started again, to go on from its newest
    checkpoint; where torchrun starts them, its --max-restarts says so."""
    check_copies_every: Annotated[int, Range(0, 10**9)] = 100
    """Steps between checks that all copies of weights and optimizer state are the same bits, which
    are also made before each checkpoint; 0 makes none."""


@dataclass
class MeshConfig:
    """Layout of the processes: world size = pipeline x expert_data x expert."""

    pipeline: Annotated[int, Range(1, 1024)] = 1
    """Pipeline ranks."""
    expert: Annotated[int, Range(1, 4096)] = 1
    """Ranks that the experts of a layer are spread over; must divide model.moe.experts."""
    expert_data: Annotated[int, Range(1, 65536)] = 1
    """Copies of each expert; data-parallel ranks = expert_data x expert."""
    context: Annotated[int, Range(1, 1024)] = 1
    """Data-parallel ranks, next to each other, that share the tokens of each sequence, which may
    then be too long for one; must divide expert_data x expert."""
    dispatch: Literal["all_to_all", "hierarchical", "deepep"] = "all_to_all"
    """Way of tokens to their experts: all_to_all sends one copy to each rank; hierarchical one to
    each node (of cluster.gpus_per_node ranks), and from there on to its ranks; deepep the same by
    DeepEP's kernels, where these are installed."""
    dispatch_dtype: Literal["same", "fp8"] = "same"
    """Type in which tokens, and gradients of results, travel to experts: that of the parameters,
    or fp8. What comes back is not rounded."""


@dataclass
class PipelineConfig:
    """The pipeline schedule."""

    schedule: Literal[
        "dualpipe", "dualpipev", "1f1b", "gpipe", "interleaved", "zb-h1", "zb-h2", "zbv"
    ] = "1f1b"
    """Schedule of the micro-batches."""
    schedule_file: Annotated[str | None, LINE] = None
    """A schedule table as `launch/simulate.py --table` writes it; takes the place of schedule."""
    micro_batches: Annotated[int, Range(1, 65536)] = 4
    """Micro-batches per step on each data-parallel rank, in all flows together."""
    overlap: bool = True
    """Run overlapped pairs interleaved, so that collectives hide behind computation."""
    layers_per_stage: Annotated[list[int] | None, Range(1, 10_000)] = None
    """Layers of each stage by depth; spread evenly when not given."""


@dataclass
class PrecisionConfig:
    """Types of the numbers that are computed with."""

    parameters: Literal["bfloat16", "float32", "float64"] = "float32"
    """Type of weights and activations. Gradients, master weights, the router and losses are float32
    or wider."""
    linear: Literal["same", "fp8"] = "same"
    """Type of the products with the weights of layers: that of parameters, or fp8 in tiles, as
    DeepSeek-V3 trains; on a CPU fp8 is emulated."""


@dataclass
class RecomputeConfig:
    """What is computed again in the backward instead of kept, or kept elsewhere."""

    norm: bool = False
    """Outputs of every RMSNorm."""
    mla_up: bool = False
    """Queries, keys and values that MLA projects up from its latents."""
    swiglu: bool = False
    """Outputs of SwiGLU."""
    layer: bool = False
    """Everything in a layer but its router and its all-to-alls."""
    offload: bool = False
    """Not computed again, but kept on the host: inputs of the experts' products and of their
    SwiGLU."""


@dataclass
class DataConfig:
    """Text and batches."""

    path: Annotated[str | None, LINE] = None
    """Prepared text, as launch/prepare.py writes it, or Megatron's .bin and .idx; or a text file, a
    folder of them, JSON lines (.jsonl; .gz and .zst too) or parquet, which each process reads into
    memory; the source text of Python's standard library when not given."""
    mixture: Annotated[list[str] | None, SOURCE] = None
    """Several such places in place of path, with their weights by tokens, as in `code: shards/code
    at 0.3 until 10B tokens, 0.5`; a weight is a share of the sum of all."""
    text_field: Annotated[str, LINE] = "text"
    """Field of a JSON line that holds the text."""
    tokenizer: Annotated[str | None, LINE] = None
    """A tokenizer.json, or a folder with one; bytes when not given."""
    sequence_length: Annotated[int, Range(1, 10**7)] = 128
    """Tokens of a sequence."""
    global_batch: Annotated[int, Range(1, 10**7)] = 16
    """Sequences of a step, over all ranks; those of recipe.batch at its end, if that is given."""
    mask_documents: bool = False
    """Keep the documents of a sequence apart: none sees another, positions start anew, and no token
    is a target from within another document. Pre-training leaves them together."""
    validation_fraction: Annotated[float, Range(above=0, below=1)] = 0.05
    """Share of the documents that is held out."""


@dataclass
class OptimizerConfig:
    """AdamW or Muon with decoupled weight decay, and the schedule of the learning rate where
    recipe.learning_rate gives no other."""

    name: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for matrices, AdamW for embedding, output head and norms; with the learning rate
    and the weight decay of AdamW."""
    zero: Literal["off", "shard", "deepspeed"] = "off"
    """off: every copy of a parameter keeps its masters and moments; shard: each its share of them
    (ZeRO-1), and gives what it has updated to the others; deepspeed: the same by DeepSpeed's
    BF16_Optimizer, for AdamW with float32 masters and moments only."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """Type of the moments, as DeepSeek-V3 bfloat16; float32 is float64 where parameters are."""
    offload: bool = False
    """Keep masters and moments on the host, and update them there; for AdamW."""
    lr: Annotated[float, Range(above=0, most=1000)] = 1e-3
    """Peak learning rate."""
    min_lr_ratio: Annotated[float, Range(0, 1)] = 0.1
    """Final learning rate over the peak."""
    warmup_steps: Annotated[int, Range(0, 10**9)] = 20
    """Steps of linear warm-up; cosine decay follows, to the last step."""
    betas: Annotated[tuple[float, float], Range(least=0, below=1)] = (0.9, 0.95)
    """Decay of the two moments."""
    eps: Annotated[float, Range(above=0, most=1)] = 1e-8
    """Added to the denominator."""
    ema: Annotated[float | None, Range(above=0, below=1)] = None
    """Decay of an exponential moving average of the weights, in CPU memory; null keeps none."""
    weight_decay: Annotated[float, Range(0, 1000)] = 0.1
    """Decoupled decay of matrices; none on norms and the router bias."""
    muon_momentum: Annotated[float, Range(least=0, below=1)] = 0.95
    """Decay of Muon's momentum."""
    muon_rms: Annotated[float, Range(above=0, most=100)] = 0.2
    """Root mean square of Muon's update over the learning rate: about AdamW's; 0.18 in
    DeepSeek-V4."""
    newton_schulz: Literal["quintic", "hybrid"] = "quintic"
    """Iterations of Muon: five, as torch.optim.Muon; or DeepSeek-V4's ten, which end nearer to an
    orthogonal matrix."""
    clip: Annotated[float, Range(0, 1e9)] = 1.0
    """Limit of the global gradient norm; 0 switches clipping off."""
    skip_limit: Annotated[int, Range(1, 10**9)] = 10
    """Steps in a row that may be skipped, since their loss or gradient is not finite or their loss
    is a spike; the last of so many stops the run. Also rollbacks to one checkpoint."""
    spike: Literal["ignore", "skip", "rollback"] = "ignore"
    """What is done about a step whose loss is a spike: ignore only reports it; skip leaves out its
    update; rollback goes back to the newest checkpoint, and on with the text after the spike's."""
    spike_threshold: Annotated[float, Range(above=0, most=1e6)] = 7.0
    """A loss is a spike if it is more than this many robust standard deviations above the median of
    the last 128."""


@dataclass
class MetricsConfig:
    """What is reported, and when."""

    log_every: Annotated[int, Range(1, 10**9)] = 10
    """Steps between lines on the console; metrics.jsonl has every step."""
    eval_every: Annotated[int, Range(0, 10**9)] = 0
    """Steps between evaluations; 0 evaluates at the end only."""
    eval_sequences: Annotated[int, Range(1, 10**9)] = 64
    """Held-out sequences of an evaluation; fewer if there are fewer."""
    eval_ema: bool = True
    """With optimizer.ema, evaluate the averaged weights, too."""
    loads_every: Annotated[int, Range(0, 10**9)] = 1
    """Steps between rows of metrics.jsonl that have each expert's load; 0 leaves it out."""
    picture: bool = True
    """Draw the run at its end: RUN/run.png."""
    timeline_every: Annotated[int, Range(0, 10**9)] = 0
    """Steps between steps that are measured and drawn, on the CPU: RUN/timelines; 0 draws none."""
    sample_every: Annotated[int, Range(0, 10**9)] = 0
    """Steps between texts that the model writes, greedily, while it trains; 0 writes none."""
    sample_prompt: Annotated[str, TEXT] = ""
    """Text that samples go on from; empty is the start of a document."""
    sample_tokens: Annotated[int, Range(1, 10**7)] = 80
    """New tokens of a sample."""
    tensorboard: bool = False
    """Also write event files for TensorBoard: RUN/tensorboard."""
    wandb: Literal["off", "on", "offline", "online"] = "off"
    """Also write to Weights & Biases: offline keeps files in the run folder, online sends them; on
    is online where a key is set, offline elsewhere."""


@dataclass
class CheckpointConfig:
    """What is saved, and where a run starts from."""

    every: Annotated[int, Range(0, 10**9)] = 500
    """Steps between checkpoints, from which a run goes on; 0 saves one only at the end and when
    the run is asked to stop, as is always done."""
    keep: Annotated[int, Range(1, 10**6)] = 2
    """Newest checkpoints that stay; older ones are deleted."""
    keep_every: Annotated[int, Range(0, 10**9)] = 0
    """Checkpoints of every so many steps stay for good; 0 keeps none for good."""
    resume: Annotated[str, LINE] = "auto"
    """auto goes on with the last run of this name if it has a checkpoint and is not finished; never
    makes a new run; the folder of a checkpoint or a run makes a new run that starts from there."""
    allow_changes: Annotated[list[str] | None, LINE] = None
    """Keys or sections that may differ from those of the checkpoint, though the run is then another
    one, as in [optimizer.lr, run.steps]."""
    export_hf: bool = True
    """At the end, save the weights as a checkpoint in the Hugging Face layout: RUN/weights."""
    export_ema: bool = False
    """At the end, save the averaged weights of optimizer.ema, too: RUN/weights-ema."""
    export_dtype: StorageType = "float32"
    """Type of the saved weights; fp8 is for matrices, in blocks of 128 x 128, the rest bfloat16."""


@dataclass
class Config:
    """A whole run."""

    run: RunConfig = field(default_factory=RunConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)

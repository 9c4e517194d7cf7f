"""What a tape holds of one MoE layer between the forward and the backward of a micro-batch, beside
what the backward has to read.

Ranks of this machine run a model with all of DeepSeek-V3's widths (arXiv 2412.19437, section 4.2)
but a part of their size; what is allocated after the forward is counted, and what one layer more
adds to it scaled to V3's widths and tokens: nearly all of it is tensors of some width per token.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from rich.table import Table

from parallel.ranks.forked import run_ranks
from parallel.ranks.process import Process
from parallel.ranks.together import gather
from trainer.bench.engine import engine_step
from trainer.bench.report import Printed
from trainer.bench.turns import OnProgress
from trainer.build.layout import build
from trainer.config.derived import mesh_of
from trainer.config.schema import Config, ModelConfig, RecomputeConfig

V3_DIM, V3_TOKENS = 7168, 4096
WAYS: Mapping[str, RecomputeConfig] = {
    "nothing": RecomputeConfig(),
    "norm, mla_up, swiglu": RecomputeConfig(norm=True, mla_up=True, swiglu=True),
    "layer": RecomputeConfig(layer=True),
}


@dataclass(frozen=True)
class Held:
    """GB at V3's size per MoE layer and micro-batch. recompute: the keys that are on."""

    recompute: str
    held: float
    needed: float


class _Mallinfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


def allocated() -> int:
    """Bytes that this process has from malloc, as all tensors on a CPU, and has not freed."""
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = _Mallinfo
    info = library.mallinfo2()
    return int(info.uordblks + info.hblkhd)


def held_by_tape(config: Config, progress: OnProgress) -> list[Held]:
    """config: of experts on several ranks; its layers and recompute keys are not used."""
    found: list[Held] = []
    for name, way in WAYS.items():
        progress(len(found), len(WAYS))
        found.append(Held(name, _of_layer(config, way) / 1e9, needed(config.model) / 1e9))
    return found


def printed(found: Sequence[Held]) -> Printed:
    table = Table(title="GB of an MoE layer and micro-batch at DeepSeek-V3's size, on the tape")
    table.add_column("recompute")
    for column in ("held", "needed", "held / needed"):
        table.add_column(column, justify="right")
    for one in found:
        ratio = one.held / one.needed
        table.add_row(one.recompute, f"{one.held:.2f}", f"{one.needed:.2f}", f"{ratio:.2f}")
    json = {"against": "needed-bytes", "held": [asdict(one) for one in found]}
    line = "needed: by a backward that computes norms, MLA's projections up and SwiGLU again"
    return Printed(json, table, (line,))


def needed(model: ModelConfig) -> int:
    """Bytes that the backward of an MoE layer has to read, with norms, MLA's projections up and
    SwiGLU computed again, at V3's size in bfloat16: the layer's input and what attention adds to
    it, latents, attention's output and its normaliser, the rows of the experts, and what is before
    each SwiGLU."""
    c, moe = model.attention, model.moe
    latents = (c.q_lora_rank or 0) + c.kv_lora_rank
    before_swiglu = 2 * (moe.shared_experts + moe.top_k) * moe.expert_dim
    widths = 2 * model.dim + latents + c.heads * c.v_head_dim + moe.top_k * model.dim
    scale = V3_DIM / model.dim
    return round((2 * (widths + before_swiglu) + 4 * c.heads) * scale * V3_TOKENS)


def _of_layer(config: Config, way: RecomputeConfig) -> float:
    one, two = (
        run_ranks(mesh_of(config).world, _rank, _with(config, layers, way)) for layers in (1, 2)
    )
    tokens = config.data.sequence_length * config.data.global_batch // mesh_of(config).data
    return (two - one) / tokens * (V3_DIM / config.model.dim) * V3_TOKENS


def _with(config: Config, layers: int, way: RecomputeConfig) -> Config:
    model = replace(config.model, layers=layers, dense_layers=0)
    return replace(config, model=model, recompute=way)


def _rank(process: Process, config: Config) -> float:
    """Bytes allocated after a forward beyond those before it, mean over the ranks."""
    layout = build(config, process, process.device(config.run.device))
    after: list[int] = []
    step = engine_step(layout, lambda item, start, end: after.append(allocated()))
    step(0)  # what is allocated once
    before = allocated()
    after.clear()
    step(0)
    by_rank = gather(after[0] - before)
    return sum(by_rank) / len(by_rank)

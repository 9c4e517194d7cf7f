"""What a run is, in lines for the person who started it."""

from __future__ import annotations

from parallel.ops.triton.fp8_ops import TritonFp8Ops
from trainer.build.layout import Layout
from trainer.build.ops import kernels_of
from trainer.build.training_text import Text
from trainer.config.schema import Config
from trainer.model.size import parameter_counts
from trainer.recipe.recipe import Recipe


def describe(layout: Layout, text: Text, recipe: Recipe) -> list[str]:
    """Its size, its layout and its data."""
    c, mesh, schedule = layout.config, layout.mesh, layout.schedule
    parameters, activated = parameter_counts(c.model)
    sizes = recipe.micro_batches
    counts = f"{sizes[0]}" if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
    source = c.data.path or "the source text of Python's standard library"
    if c.data.mixture is not None:
        source = "a mixture"
    return [
        f"{c.run.name}: {parameters / 1e6:.2f}M parameters, {activated / 1e6:.2f}M activated per "
        f"token; {c.precision.parameters} on {layout.device.type}",
        f"attention: kernel {layout.part.options.ops.attention_kernel} (run.attention); products: "
        f"{_products(c)} by {_kernels(layout)} (run.kernels)",
        f"mesh: {mesh.world} process{'es' * (mesh.world > 1)} = pipeline {mesh.pipeline} x "
        f"expert_data {mesh.expert_data} x expert {mesh.expert}",
        f"steps: {recipe.plan.end.step} of {counts} micro-batches, each of "
        f"{layout.sequences} x {c.data.sequence_length} tokens; {schedule.name}, overlap "
        f"{'on' if c.pipeline.overlap else 'off'}",
        f"data: {source}: {text.describe()}",
    ]


def _kernels(layout: Layout) -> str:
    ops = layout.part.options.ops
    if isinstance(ops, TritonFp8Ops):
        return ops.products.describe()
    return kernels_of(layout.config, layout.device)


def _products(config: Config) -> str:
    """The type in which layers multiply with their weights."""
    precision = config.precision
    return "fp8" if precision.linear == "fp8" else precision.parameters

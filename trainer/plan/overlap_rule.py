"""Whether experts compute long enough to hide their own all-to-alls, whatever the schedule.

DeepSeek-V4 (arXiv 2606.19348, section 3) compares FLOP with bytes: for a token and an expert of
inner width d, three products of 6 h d FLOP stand against h bytes there (fp8) and 2 h back (bf16), h
the width of the model: 2 d FLOP per byte. A machine that computes no more FLOP than that while it
sends one byte hides the bytes. Here the bytes are those of the config's own dispatch, on the link
that takes longer, since a copy may serve several experts. DualPipe needs less: a layer's whole
computation stands against them, since a pair hides them behind attention, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from parallel.ranks.mesh import Mesh
from trainer.config.schema import Config
from trainer.plan.datasheets import Machine
from trainer.plan.flops import layer_flops
from trainer.plan.traffic import Bytes, exchange_bytes, tokens_of_micro_batch


@dataclass(frozen=True)
class OverlapRule:
    """FLOP per byte: 2 d, of the config's experts, of its whole MoE layer, and of the machine at
    its peak on the link that takes longer (network or nvlink)."""

    link: str
    machine: float
    two_d: float
    experts: float
    layer: float

    @property
    def hidden_by_experts(self) -> bool:
        return self.experts >= self.machine

    @property
    def hidden_by_layer(self) -> bool:
        return self.layer >= self.machine


def overlap_rule(config: Config, mesh: Mesh, machine: Machine) -> OverlapRule | None:
    """Of the forward of an MoE layer; None where nothing is exchanged."""
    model = config.model
    if mesh.expert == 1 or model.dense_layers == model.layers:
        return None
    each = exchange_bytes(config, mesh, machine)
    sent = each["dispatch"] + each["combine"]
    network = Bytes(network=sent.network).seconds(machine) >= sent.seconds(machine)
    link, amount, bandwidth = (
        ("network", sent.network, machine.network)
        if network
        else ("nvlink", sent.nvlink, machine.nvlink)
    )
    peak = machine.fp8 if config.plan.linear == "fp8" else machine.bf16
    flops = layer_flops(model, model.dense_layers, config.data.sequence_length)
    per_token = amount / tokens_of_micro_batch(config, mesh)
    return OverlapRule(
        link=link,
        machine=peak / bandwidth,
        two_d=2 * model.moe.expert_dim,
        experts=(flops.routed + flops.shared) / per_token,
        layer=flops.total / per_token,
    )

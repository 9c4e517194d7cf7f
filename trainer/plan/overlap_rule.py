"""Whether a config computes long enough to hide its all-to-alls, whatever its schedule.

DeepSeek-V4 (arXiv 2606.19348, section 3) compares FLOP with bytes: for a token and an expert of
inner width d, three products of 6 h d FLOP stand against h bytes there (fp8) and 2 h back (bf16), h
the width of the model: 2 d FLOP per byte. Computing hides the bytes where the machine computes no
more FLOP while it sends one. Here the bytes are those of the config's own dispatch, of which one
copy may serve several experts, on the link that takes longer. An overlapped pair needs less: all
that a layer computes, forward and backward, stands against its four all-to-alls.
"""

from __future__ import annotations

from dataclasses import dataclass

from parallel.ranks.mesh import Mesh
from trainer.config.schema import Config
from trainer.plan.datasheets import Machine
from trainer.plan.flops import BACKWARD_AND_FORWARD, layer_flops
from trainer.plan.traffic import Bytes, exchange_bytes, linear_of, tokens_of_micro_batch


@dataclass(frozen=True)
class OverlapRule:
    """FLOP per byte: 2 d; of the experts' forward; of a pair of MoE layers; and of the machine at
    its peak, on the link that takes longer (network or nvlink)."""

    link: str
    machine: float
    two_d: float
    experts: float
    pair: float

    @property
    def experts_hide_below(self) -> float:
        """The share of its peak up to which the machine's experts hide their own all-to-alls."""
        return self.experts / self.machine

    @property
    def pair_hides_below(self) -> float:
        """The same of a pair."""
        return self.pair / self.machine


def overlap_rule(config: Config, mesh: Mesh, machine: Machine) -> OverlapRule | None:
    """None where nothing is exchanged."""
    model = config.model
    if mesh.expert == 1 or model.dense_layers == model.layers:
        return None
    each = exchange_bytes(config, mesh, machine)
    there = each["dispatch"] + each["combine"]
    back = each["combine_back"] + each["dispatch_back"]
    network = Bytes(network=there.network).seconds(machine) >= there.seconds(machine)
    link, bandwidth = ("network", machine.network) if network else ("nvlink", machine.nvlink)
    sent, sent_back = (there.network, back.network) if network else (there.nvlink, back.nvlink)
    peak = machine.fp8 if linear_of(config) == "fp8" else machine.bf16
    flops = layer_flops(model, model.dense_layers, config.data.sequence_length)
    tokens = tokens_of_micro_batch(config, mesh)
    return OverlapRule(
        link=link,
        machine=peak / bandwidth,
        two_d=2 * model.moe.expert_dim,
        experts=(flops.routed + flops.shared) * tokens / sent,
        pair=BACKWARD_AND_FORWARD * flops.total * tokens / (sent + sent_back),
    )

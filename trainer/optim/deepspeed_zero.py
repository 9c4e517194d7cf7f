"""ZeRO-1 by DeepSpeed's BF16_Optimizer. Importing this imports DeepSpeed.

DeepSpeed flattens and partitions the weights over each set of copies, keeps the float32 masters,
and writes and gathers the weights of lower precision. Reduction, norm and clipping stay ours, since
its own norm is wrong where a stage has no experts or shares a parameter with another.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.ops.accumulate import set_gradient
from parallel.ranks.groups import group_of_one
from parallel.ranks.mesh import RankSet
from parallel.reduce.bucket import Bucket
from parallel.reduce.gradients import Gradients
from parallel.reduce.share import Share, cut_evenly
from trainer.config.schema import OptimizerConfig
from trainer.optim.state import Fragment, TensorsOf, fragments

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
with contextlib.redirect_stdout(io.StringIO()):
    import deepspeed
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config


class _Partitioned(BF16_Optimizer):
    """With one process group per parameter group, whatever made its copies."""

    def __init__(
        self,
        adamw: torch.optim.AdamW,
        names: Mapping[nn.Parameter, str],
        process_groups: Sequence[dist.ProcessGroup],
    ) -> None:
        self._of_each = list(process_groups)
        with contextlib.redirect_stdout(io.StringIO()):  # it reports its memory twice per group
            super().__init__(
                adamw,
                names,
                DeepSpeedBF16Config(enabled=True),
                dp_process_group=process_groups[0],
                grad_acc_dtype=torch.float32,
                has_moe_layers=True,  # so that it asks for the groups
            )

    def _configure_moe_settings(self) -> None:
        self.real_dp_process_group = self._of_each


class DeepSpeedAdamW:
    """AdamW whose masters and moments BF16_Optimizer partitions. Weights are bfloat16 or float32,
    masters and moments float32."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        copies_of: Mapping[str, RankSet],
        groups: Mapping[RankSet, dist.ProcessGroup],
        rank: int,
        tensors_of: TensorsOf,
        stages_of: Callable[[str], frozenset[int]],
        held: Collection[int],
        config: OptimizerConfig,
    ) -> None:
        """As for FlatOptimizer and its Gradients. Moves the parameters into DeepSpeed's buffers.
        There must be a world's process group."""
        self._tensors_of, self._clip = tensors_of, config.clip
        device = next(iter(parameters.values())).device
        _start(device)
        members: dict[tuple[int, RankSet, bool], list[str]] = {}
        for name in sorted(parameters):
            key = (-min(stages_of(name)), copies_of[name], parameters[name].ndim > 1)
            members.setdefault(key, []).append(name)
        chosen = sorted(members)
        alone = group_of_one(rank, device)
        param_groups = [
            {
                "params": [parameters[name] for name in members[key]],
                "weight_decay": config.weight_decay if key[2] else 0.0,
            }
            for key in chosen
        ]
        adamw = torch.optim.AdamW(
            param_groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True
        )
        names = {parameter: name for name, parameter in parameters.items()}
        process_groups = [groups.get(ranks, alone) for _, ranks, _ in chosen]
        self._deepspeed = _Partitioned(adamw, names, process_groups)
        shares = []
        for i, key in enumerate(chosen):
            stages = frozenset().union(*map(stages_of, members[key]))
            chosen_here = {name: parameters[name] for name in members[key]}
            bucket = self._bucket(i, stages, chosen_here, key[1], groups.get(key[1]))
            shares.append(Share(bucket, cut_evenly(bucket), rank))
        self.gradients = Gradients(shares, held)
        for master in self._deepspeed.fp32_groups_flat_partition:
            adamw.state[master] = {
                "step": torch.zeros((), device=master.device),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }

    def _bucket(
        self,
        index: int,
        stages: frozenset[int],
        parameters: Mapping[str, nn.Parameter],
        ranks: RankSet,
        group: dist.ProcessGroup | None,
    ) -> Bucket:
        """DeepSpeed's buffers of a parameter group as a bucket; it leaves no gaps in them."""
        values = self._deepspeed.bf16_groups_flat[index]
        gradient = self._deepspeed.fp32_groups_gradients_flat[index]
        starts, end = [], 0
        for parameter in parameters.values():
            starts.append(end)
            end += parameter.numel()
            set_gradient(parameter, gradient[starts[-1] : end].view(parameter.shape))
        names, chosen = tuple(parameters), tuple(parameters.values())
        return Bucket("", stages, names, chosen, tuple(starts), values, gradient, ranks, group)

    @property
    def updates(self) -> int:
        return int(next(iter(self._deepspeed.optimizer.state.values()))["step"])

    def zero(self) -> None:
        self.gradients.zero()

    def reduce(self) -> Tensor:
        self.gradients.reduce()
        return self.gradients.square()

    @torch.no_grad()
    def step(self, norm: Tensor, learning_rate: float) -> None:
        self.gradients.clip(norm, self._clip)
        for group in self._deepspeed.param_groups:
            group["lr"] = learning_rate
        masters = self._deepspeed.fp32_groups_flat_partition
        for master, share in zip(masters, self.gradients.shares):
            (master.grad,) = share.gradients()
        self._deepspeed.optimizer.step()
        self._deepspeed.update_lp_params()

    def state(self) -> list[Fragment]:
        found: list[Fragment] = []
        masters = self._deepspeed.fp32_groups_flat_partition
        for master, share in zip(masters, self.gradients.shares):
            ((start, _),) = share.ranges
            moments = self._deepspeed.optimizer.state[master]
            for kind in ("master", "exp_avg", "exp_avg_sq"):
                values = master.detach() if kind == "master" else moments[kind]
                found += fragments(share.bucket, self._tensors_of, kind, start, values, True)
        return found

    @torch.no_grad()
    def loaded(self, updates: int) -> None:
        for state in self._deepspeed.optimizer.state.values():
            state["step"].fill_(updates)
        self._deepspeed.update_lp_params()


def _start(device: torch.device) -> None:
    """Let DeepSpeed use the process groups that there are."""
    # It calls torch's all-gather by its older name.
    warnings.filterwarnings("ignore", ".*all_gather_into_tensor", FutureWarning)
    # Its shared-memory collectives are for inference; it would compile them here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)

"""The same function as transformers' DeepSeek-V3 and V2: logits, loss and every gradient, with
random weights that transformers saved, or that it read under the names of the released ones.

transformers computes norms, rotary angles and router in float32, whatever its weights are.
`InDouble` makes that float64, so that only float64's rounding is left between the two models.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    PreTrainedModel,
)
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

from parallel.ranks.process import Process
from trainer.build.layout import Layout, build
from trainer.checkpoint.hf.architecture import model_from_hf, with_mtp_of
from trainer.checkpoint.hf.config_json import hf_from_model
from trainer.config.schema import Config, DataConfig, ModelConfig, PipelineConfig, PrecisionConfig
from trainer.model.names import named_biases, named_tensors
from trainer.model.whole import WholeModel
from trainer.objective.pretraining import TOKENS
from trainer.recipe.progress import Progress
from trainer.run.step import Trainer

SEQUENCES, LENGTH, VOCABULARY = 2, 48, 61
SEED = 39  # of weights under which no router has two choices that are nearly as good
# Of logits and losses, and of gradients. Measured: 3e-6 and 1e-5 in float32, where each model is as
# far from itself in float64 (8e-6 and 2e-5); 8e-15 and 2e-14 in float64.
TOLERANCES = {torch.float32: (1e-5, 1e-4), torch.float64: (1e-12, 1e-12)}
MARGIN = 3e-5  # of a router's choice; scores are within 1e-5 of those in float64
BASE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 12, "q_lora_rank": None,
    "qk_nope_head_dim": 6, "qk_rope_head_dim": 8, "v_head_dim": 7, "moe_intermediate_size": 16,
    "n_routed_experts": 16, "num_experts_per_tok": 3, "n_shared_experts": 1, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 0, "rope_theta": 500.0,
}  # fmt: skip
LATENT_QUERY: dict[str, Any] = {"q_lora_rank": 16}
GROUPS = {"n_group": 4, "topk_group": 2}
DENSE = {"first_k_dense_replace": 2, "num_hidden_layers": 4}


def yarn(**scales: float) -> dict[str, Any]:
    """YaRN on an original length that the test's sequences are three times as long as."""
    scaling = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 16}
    return {
        "max_position_embeddings": 640,
        "rope_scaling": scaling | {"beta_fast": 2, "beta_slow": 0.1} | scales,
    }


V3 = {
    "direct queries, one group": {"routed_scaling_factor": 1.0},
    "query latent, groups, two dense layers, two shared experts": (
        LATENT_QUERY | GROUPS | DENSE | {"n_shared_experts": 2, "routed_scaling_factor": 2.5}
    ),
    "weights not normalised, YaRN as V3": (
        LATENT_QUERY | {"norm_topk_prob": False} | yarn(mscale=1.0, mscale_all_dim=1.0)
    ),
    "direct queries, groups, two dense layers, YaRN as V2-Lite": (
        GROUPS | DENSE | yarn(mscale=0.707, mscale_all_dim=0.707)
    ),
    "YaRN scales the rotary part and the softmax apart": yarn(mscale=1.5, mscale_all_dim=0.6),
    "YaRN without scales": yarn(),
}
V2 = {
    "V2-Lite": (
        {"n_shared_experts": 2, "first_k_dense_replace": 1, "topk_method": "greedy"}
        | {"routed_scaling_factor": 1.0}
        | yarn(mscale=0.707, mscale_all_dim=0.707)
    ),
    "V2": (
        LATENT_QUERY | {"n_group": 4, "topk_group": 3, "topk_method": "group_limited_greedy"}
        | {"n_shared_experts": 2, "routed_scaling_factor": 16.0}
        | yarn(mscale=0.707, mscale_all_dim=0.707)
    ),
}  # fmt: skip


class InDouble(TorchFunctionMode):
    """Where code asks for float32 by name it gets float64."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        wider = {torch.float32: torch.float64}
        function = Tensor.double if function is Tensor.float else function
        args = tuple(wider.get(a, a) if isinstance(a, torch.dtype) else a for a in args)
        kwargs = {k: wider.get(v, v) if k == "dtype" else v for k, v in (kwargs or {}).items()}
        return function(*args, **kwargs)


@contextlib.contextmanager
def precision(dtype: torch.dtype) -> Iterator[None]:
    """Models made inside compute in `dtype`, all of them."""
    torch.set_default_dtype(dtype)
    try:
        with InDouble() if dtype == torch.float64 else contextlib.nullcontext():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def theirs(options: dict[str, Any]) -> PreTrainedModel:
    """A model of transformers with weights far from their initial ones: attention and routing are
    far from uniform, norms from one and router biases from zero."""
    v3 = "topk_method" not in options
    config = (DeepseekV3Config if v3 else DeepseekV2Config)(**BASE | options)
    model = (DeepseekV3ForCausalLM if v3 else DeepseekV2ForCausalLM)(config)
    scramble(itertools.chain(model.parameters(), biases(model)))
    one_by_one(model)
    return model


def one_by_one(model: PreTrainedModel) -> None:
    """Let experts run in a loop where grouped products, transformers' default, have no kernel."""
    if model.dtype == torch.float64:
        model.set_experts_implementation("eager")


def biases(model: nn.Module) -> list[Tensor]:
    return [b for name, b in model.named_buffers() if name.endswith("e_score_correction_bias")]


@torch.no_grad()
def scramble(tensors: Any) -> None:
    """Random values, the same in float32 and float64."""
    random = np.random.default_rng(SEED)
    for tensor in tensors:
        if tensor.ndim > 1:
            values = 1.3 * tensor.shape[-1] ** -0.5 * random.standard_normal(tensor.shape)
        elif isinstance(tensor, nn.Parameter):
            values = random.uniform(0.5, 1.5, tensor.shape)
        else:
            values = random.uniform(-0.2, 0.2, tensor.shape)
        tensor.copy_(torch.from_numpy(values.astype(np.float32)))


def windows(lookahead: int) -> Tensor:
    """Tokens [B, S + lookahead]."""
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, VOCABULARY, (SEQUENCES, LENGTH + lookahead), generator=generator)


def saved(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """The tensors under the released names, as transformers writes them."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def ours(model: ModelConfig, dtype: torch.dtype) -> Layout:
    """The model on one process, without a balance loss."""
    config = Config(
        precision=PrecisionConfig("float64" if dtype == torch.float64 else "float32"),
        pipeline=PipelineConfig("1f1b", micro_batches=2),
        model=replace(model, moe=replace(model.moe, balance_alpha=0.0)),
        data=DataConfig(sequence_length=LENGTH, global_batch=SEQUENCES),
    )
    return build(config, Process(), torch.device("cpu"))


def load(layout: Layout, tensors: dict[str, Tensor]) -> None:
    """Copy every tensor by its released name; none is left over on either side."""
    mine = dict(named_tensors(layout.part))
    if layout.config.model.moe.score == "sigmoid":
        mine |= dict(named_biases(layout.part))
    assert set(mine) == set(tensors)
    for name, tensor in mine.items():
        tensor.copy_(tensors[name])


def distance(tensor: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((tensor - expected).norm() / expected.norm())


def assert_close(tensor: Tensor, expected: Tensor, tolerance: float) -> None:
    """The largest difference is within `tolerance` of the largest value, and that of each value
    more than half as large within `tolerance` of its own."""
    assert tensor.dtype == expected.dtype
    assert tensor.shape == expected.shape
    difference, size = (tensor - expected).abs(), expected.abs()
    assert difference.max() <= tolerance * size.max()
    large = size > size.max() / 2
    assert (difference[large] / size[large]).max() <= tolerance


@dataclass
class Margins:
    """The smallest gap between what a router of transformers chose and what it did not."""

    smallest: float = float("inf")

    def watch(self, model: nn.Module) -> None:
        for module in model.modules():
            if type(module).__name__.endswith("TopkRouter"):
                module.register_forward_hook(self._see)

    def _see(self, router: Any, args: Any, output: Any) -> None:
        logits_TE = output[0].detach()
        if hasattr(router, "e_score_correction_bias"):
            choice_TE, best = logits_TE.sigmoid() + router.e_score_correction_bias, 2
        else:
            choice_TE, best = logits_TE.softmax(-1), 1
        if (router.num_group or 1) > 1:
            choice_TGM = choice_TE.unflatten(-1, (router.num_group, -1))
            groups_TG = choice_TGM.topk(best).values.sum(-1)
            kept_TG = self._gap(groups_TG, router.topk_group)
            choice_TE = choice_TGM.where(kept_TG.unsqueeze(-1), -torch.inf).flatten(1)
        kept_TE = self._gap(choice_TE, router.top_k)
        assert kept_TE.equal(torch.zeros_like(kept_TE).scatter(1, output[2], True))

    def _gap(self, values_TN: Tensor, chosen: int) -> Tensor:
        """Where the best `chosen` of each row are."""
        order_TN = values_TN.sort(descending=True).values
        if chosen < order_TN.shape[1]:
            gap = float((order_TN[:, chosen - 1] - order_TN[:, chosen]).min())
            self.smallest = min(self.smallest, gap)
        return values_TN >= order_TN[:, chosen - 1 : chosen]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", [*V3, *V2])
def test_logits_and_every_gradient_are_those_of_transformers(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Of several architectures; under YaRN on sequences beyond the original length."""
    within, gradients_within = TOLERANCES[dtype]
    tokens = windows(1)
    margins = Margins()
    with precision(dtype):
        reference = theirs((V3 | V2)[name])
        margins.watch(reference)
        tensors = saved(reference, tmp_path / "weights")
        logits_BSV = reference(tokens[:, :-1], use_cache=False).logits
        loss = nn.functional.cross_entropy(logits_BSV.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        with torch.no_grad():  # transformers names gradients as it names the weights it saves
            for parameter in reference.parameters():
                parameter.copy_(parameter.grad)
        expected = saved(reference, tmp_path / "gradients")
    assert margins.smallest > MARGIN

    model = model_from_hf(json.loads((tmp_path / "weights/config.json").read_text()), "config.json")
    layout = ours(with_mtp_of(model, tensors), dtype)
    load(layout, tensors)
    whole = WholeModel(layout.part)
    logits_TV = whole.logits(whole.hidden(tokens[:, :-1].flatten()))
    assert_close(logits_TV, logits_BSV.detach().flatten(0, 1), within)

    totals = Trainer(layout).accumulate(Progress(), lambda m: {TOKENS: tokens[m : m + 1]})
    mean = totals.losses["loss"] / (SEQUENCES * LENGTH)
    assert mean == pytest.approx(loss.item(), rel=within)
    gradients = dict(named_tensors(layout.part, lambda p: p.grad))
    apart = {n: distance(g, expected[n]) for n, g in gradients.items() if expected[n].any()}
    assert max(apart.values()) <= gradients_within, max(apart, key=apart.__getitem__)
    # An expert that no token chose has no gradient; nearly all have one.
    still = [n for n in gradients if n not in apart]
    assert all(".mlp.experts." in n and not gradients[n].any() for n in still)
    assert len(still) < len(gradients) / 10


def released_checkpoint(folder: Path, depth: int, dtype: torch.dtype) -> Layout:
    """A model with MTP of ours, and its weights in `folder` under the released names."""
    options = BASE | LATENT_QUERY | GROUPS | yarn(mscale=1.0, mscale_all_dim=1.0)
    options |= {"first_k_dense_replace": 1, "num_nextn_predict_layers": depth}
    model = model_from_hf(DeepseekV3Config(**options).to_dict(), "options")
    layout = ours(model, dtype)
    scramble(itertools.chain(layout.part.parameters(), biases(layout.part)))
    tensors = dict(named_tensors(layout.part)) | dict(named_biases(layout.part))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    kind = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(hf_from_model(model, {}, kind, LENGTH)))
    return layout


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("depth", [1, 2])
def test_mtp_is_that_of_transformers(depth: int, dtype: torch.dtype, tmp_path: Path) -> None:
    """transformers reads the released names itself; every depth, every position, the same tokens.

    It numbers the positions of depth k from k on, where the token that it embeds is, and Tandem
    from 0: rotary positions are relative, so the common shift changes nothing.
    """
    within, _ = TOLERANCES[dtype]
    layout = released_checkpoint(tmp_path, depth, dtype)
    tokens = windows(1 + depth)
    margins = Margins()
    positions = torch.arange(LENGTH).unsqueeze(0)
    with precision(dtype), torch.no_grad():
        main = DeepseekV3ForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        # Where the modules lie: transformers only looks for those of the released model, at 61.
        layers = "|".join(str(main.config.num_hidden_layers + d) for d in range(depth))
        main._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.({layers})\."]
        mtp = MtpModel.from_pretrained(main)
        for model in (main, mtp):
            one_by_one(model)
            margins.watch(model)
        outputs = main(tokens[:, :LENGTH], use_cache=False, output_hidden_states=True)
        logits, hidden_BSD = [outputs.logits], outputs.hidden_states[-1]  # as generate() passes it
        for d in range(depth):
            for first in (0, d + 1):  # its own numbering last
                out_BSD = mtp.forward_layer(
                    d,
                    hidden_BSD,
                    positions + first,
                    MtpCache(config=mtp.config) if first else None,
                    input_ids=tokens[:, d + 1 : d + 1 + LENGTH],
                )
                logits.append(mtp._project_to_logits(out_BSD))
            assert_close(logits.pop(-2), logits[-1], within)
            hidden_BSD = out_BSD
    assert margins.smallest > MARGIN

    whole = WholeModel(layout.part)
    hidden_TD = whole.hidden(tokens[:, :LENGTH].flatten())
    losses: dict[str, Any] = {}
    for d, expected_BSV in enumerate(logits):
        if d > 0:
            hidden_TD = whole.mtp_hidden(d, hidden_TD, tokens[:, d : d + LENGTH].flatten())
        assert_close(whole.logits(hidden_TD), expected_BSV.flatten(0, 1), within)
        targets_T = tokens[:, d + 1 : d + 1 + LENGTH].flatten()
        loss = nn.functional.cross_entropy(expected_BSV.flatten(0, 1), targets_T, reduction="sum")
        losses[f"mtp_{d}_loss" if d else "loss"] = pytest.approx(loss.item(), rel=within)
    trained = Trainer(layout).accumulate(Progress(), lambda m: {TOKENS: tokens[m : m + 1]}).losses
    assert {name: trained[name] for name in losses} == losses

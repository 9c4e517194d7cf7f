"""Generation: the latent cache against the uncached model, decoding, drafts and their verification.

The reference is trainer.model.whole.WholeModel on the whole text at once, whose attention is that
of training.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from parallel.ops.ops import Ops
from parallel.ops.precision import PRECISIONS, Precision
from trainer.config.schema import (
    AttentionConfig,
    ModelConfig,
    MoEConfig,
    MTPConfig,
    YarnConfig,
)
from trainer.generate import cached_model, inference_ops
from trainer.generate.cached_model import CachedModel, cached_part, start_texts
from trainer.generate.choose import Choose, NotFinite, Sampler, greedy, nucleus
from trainer.generate.decode import Counts, decode
from trainer.generate.speculate import speculate
from trainer.model.names import initialise, named_biases, named_tensors
from trainer.model.part import ModelPart
from trainer.model.whole import WholeModel, whole_model

LENGTH, VOCABULARY, SEED = 24, 61, 3
V3 = MoEConfig(experts=8, top_k=3, groups=4, top_groups=2, expert_dim=16, scale=2.5)
V2 = MoEConfig(
    experts=8, shared_experts=0, top_k=3, expert_dim=16, score="softmax", normalise=False
)
YARN = YarnConfig(factor=4, original_length=8, beta_fast=2, beta_slow=0.2)
BASE = ModelConfig(
    vocab_size=VOCABULARY,
    layers=3,
    dense_layers=1,
    dim=32,
    dense_dim=40,
    attention=AttentionConfig(3, 16, 12, 8, 6, 10),
    moe=V3,
)
DIRECT = AttentionConfig(3, None, 12, 8, 6, 10)
VARIANTS = {
    "V3: query latent, groups": BASE,
    "direct queries, softmax router, nothing shared, no dense layer": replace(
        BASE, attention=DIRECT, moe=V2, dense_layers=0
    ),
    "YaRN, three times its original length": replace(
        BASE, attention=replace(BASE.attention, yarn=YARN), moe=replace(V3, groups=1, top_groups=1)
    ),
    "direct queries, YaRN, two shared experts": replace(
        BASE, attention=replace(DIRECT, yarn=YARN), moe=replace(V3, shared_experts=2)
    ),
}
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}


@dataclass(frozen=True)
class Twins:
    """The same weights with attention over caches, and as in training on `length` tokens."""

    model: ModelConfig
    part: ModelPart
    uncached: WholeModel
    length: int

    def start(self, positions: int | None = None, slots: int = 1) -> CachedModel:
        positions = self.length if positions is None else positions
        return start_texts(self.part, self.model, positions, slots)

    def pad(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor([*tokens, *[0] * (self.length - len(tokens))])

    def choices(self, tokens: Sequence[int]) -> list[int]:
        """What the model chooses after each of `tokens`, all read at once."""
        hidden_TD = self.uncached.hidden(self.pad(tokens))
        return self.uncached.logits(hidden_TD).argmax(-1).tolist()[: len(tokens)]

    def drafts(self, tokens: Sequence[int]) -> list[int]:
        """What the MTP modules draft after `tokens`, of which the model has read all but one."""
        known, last = list(tokens), len(tokens) - 1
        hidden_TD = self.uncached.hidden(self.pad(tokens))
        for depth in range(1, self.model.mtp.depth + 1):
            further_T = self.pad(known[depth:])
            hidden_TD = self.uncached.mtp_hidden(depth, hidden_TD, further_T)
            known.append(int(self.uncached.logits(hidden_TD)[last - 1].argmax()))
        return known[len(tokens) :]


def twins(
    model: ModelConfig, dtype: torch.dtype = torch.float64, length: int = LENGTH, std: float = 0.2
) -> Twins:
    precision = Precision(dtype, dtype)
    part = cached_part(model, precision)
    initialise(part, SEED, std)
    for _, bias in named_biases(part):
        bias.normal_(0, 0.1, generator=torch.Generator().manual_seed(SEED))
    whole = whole_model(model, Ops(precision), length)
    whole.load_state_dict(part.state_dict())
    return Twins(model, part, WholeModel(whole), length)


def random_tokens(count: int, seed: int = 0) -> list[int]:
    return torch.randint(
        VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)
    ).tolist()


# --- The cache ----------------------------------------------------------------------------------


def read_in_chunks(model: CachedModel, tokens: list[int], chunk: int) -> Tensor:
    rows = [
        model.logits(model.hidden([tokens[i : i + chunk]])) for i in range(0, len(tokens), chunk)
    ]
    return torch.cat(rows)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_cached_logits_are_the_uncached_ones_at_every_position(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference_ops, "LARGE", 0)  # so that products are large, from 8 rows on
    pair = twins(VARIANTS[name], dtype)
    tokens = random_tokens(LENGTH)
    expected_TV = pair.uncached.logits(pair.uncached.hidden(pair.pad(tokens)))
    scale_T = expected_TV.abs().amax(-1)
    for chunk in (1, 3, LENGTH):
        cached_TV = read_in_chunks(pair.start(), tokens, chunk)
        error_T = (cached_TV - expected_TV).abs().amax(-1) / scale_T
        assert error_T.max() < TOLERANCES[dtype], chunk
    model = pair.start()
    read_in_chunks(model, tokens[:7] + random_tokens(9, seed=1), 5)
    model.truncate(7)  # forget what was not of this text
    rest_TV = read_in_chunks(model, tokens[7:], 4)
    assert ((rest_TV - expected_TV[7:]).abs().amax(-1) / scale_T[7:]).max() < TOLERANCES[dtype]


def test_bfloat16_loses_no_more_over_caches_than_without() -> None:
    exact = twins(BASE, torch.float64, std=0.1)
    narrow = cached_part(BASE, PRECISIONS["bfloat16"])
    narrow.load_state_dict(exact.part.state_dict())
    uncached = whole_model(BASE, Ops(PRECISIONS["bfloat16"]), LENGTH)
    for part in (exact.part, exact.uncached.part, uncached):
        part.load_state_dict(narrow.state_dict())  # weights that all types can hold
    tokens = random_tokens(LENGTH)
    model = start_texts(narrow, BASE, LENGTH)
    assert model.caches[0].entries[0].dtype is torch.float32
    expected_TV = exact.uncached.logits(exact.uncached.hidden(torch.tensor(tokens)))
    without_TV = WholeModel(uncached).logits(WholeModel(uncached).hidden(torch.tensor(tokens)))
    error_T, usual_T = (
        (logits_TV - expected_TV).abs().amax(-1)
        for logits_TV in (read_in_chunks(model, tokens, 5), without_TV)
    )
    assert 0 < error_T.median() < 2 * usual_T.median()


class LargestResult(TorchFunctionMode):
    """The most numbers in any tensor that is made; views are not."""

    numbers = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {each.untyped_storage().data_ptr() for each in args if isinstance(each, Tensor)}
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in given:
                self.numbers = max(self.numbers, each.numel())
        return result


def test_cache_holds_one_latent_and_one_key_a_token_and_nothing_is_made_for_each_head() -> None:
    length = 3000
    pair = twins(BASE, length=length)
    c, model = BASE.attention, pair.start()
    model.caches[0].lengths[0] = length - 1
    with LargestResult() as largest:
        model.hidden([[5]])
    for entries_SPE in model.caches[0].entries:
        assert entries_SPE.shape == (1, length, c.kv_lora_rank + c.rope_head_dim)
        assert entries_SPE.untyped_storage().nbytes() == 8 * length * (12 + 6)
    per_head_keys = length * c.heads * c.nope_head_dim
    # The scores, one for each head and token; all keys of one head would be more.
    assert largest.numbers == length * c.heads < per_head_keys / c.heads


def test_the_prompt_is_read_in_chunks_that_bound_the_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cached_model, "SCORES", 5 * BASE.attention.heads * LENGTH)
    pair = twins(BASE)
    passes = [
        (first, counts, len(hidden_TD))
        for first, counts, hidden_TD in pair.start(slots=3).read(
            [random_tokens(count) for count in (3, 12, 4)]
        )
    ]
    assert passes == [(0, [3, 2], 5), (1, [5], 5), (1, [5], 5), (2, [4], 4)]


def test_a_full_cache_takes_no_more_and_forgets_only_what_it_has() -> None:
    model = twins(BASE).start(positions=3)
    model.hidden([[1, 2, 3]])
    with pytest.raises(ValueError, match="4 tokens in a cache of 3"):
        model.hidden([[4]])
    with pytest.raises(ValueError, match="cannot cut 3 tokens to 4"):
        model.truncate(4)


# --- Decoding -----------------------------------------------------------------------------------


def decoded(pair: Twins, prompt: list[int], new: int) -> list[int]:
    [text] = decoded_together(pair, [prompt], [new])
    return text


def decoded_together(
    pair: Twins,
    prompts: list[list[int]],
    new: list[int],
    slots: int = 1,
    choose: Choose = greedy,
    ends: int = -1,
) -> list[list[int]]:
    """As many new tokens of each prompt, or fewer where one is `ends`, the last."""
    texts: list[list[int]] = [[] for _ in prompts]

    def push(number: int, token: int) -> bool:
        texts[number].append(token)
        return token != ends and len(texts[number]) < new[number]

    positions = max(len(prompt) + count - 1 for prompt, count in zip(prompts, new))
    decode(pair.start(positions, slots), prompts, choose, push)
    return texts


def speculated(pair: Twins, prompt: list[int], new: int) -> tuple[list[int], Counts]:
    counts = Counts()
    model = pair.start(len(prompt) + new - 1)
    tokens = list(itertools.islice(speculate(model, prompt, counts), new))
    require_modules_have_read(pair, model, prompt + tokens)
    return tokens, counts


def require_modules_have_read(pair: Twins, model: CachedModel, text: list[int]) -> None:
    """The caches of the MTP modules are those of a text that was there from the start, but for what
    the last drafts left."""
    fresh = pair.start(len(text))
    hidden_TD = fresh.hidden([text])
    for depth in range(1, pair.model.mtp.depth + 1):
        hidden_TD = fresh.mtp_hidden(depth, hidden_TD[:-1], text[depth:])
        read, expected = (one.caches[depth].entries[0][0] for one in (model, fresh))
        settled = len(text) - 2 * (1 + pair.model.mtp.depth)
        torch.testing.assert_close(read[:settled], expected[:settled])


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_takes_the_uncached_models_choice_at_each_step(name: str) -> None:
    pair, prompt = twins(VARIANTS[name]), random_tokens(4)
    new = decoded(pair, prompt, LENGTH - 4)
    text = prompt + new
    assert new == pair.choices(text)[3:-1]
    assert len(set(new)) > 5  # not a text that any model would have found


def test_what_fills_up_the_vocabulary_is_never_chosen() -> None:
    pair = twins(replace(BASE, mtp=MTPConfig(1)))
    tokens: list[int] = []

    def push(number: int, token: int) -> bool:
        tokens.append(token)
        return len(tokens) < LENGTH

    start = partial(start_texts, pair.part, pair.model, LENGTH, vocabulary=5)
    decode(start(), [[1]], greedy, push)
    assert max(tokens) < 5
    assert max(itertools.islice(speculate(start(), [1], Counts()), LENGTH)) < 5


def successors(model: ModelConfig, right: float, noise: float) -> Twins:
    """A model of a language in which each token has one successor, and what it says of the text
    before is `noise`. Its MTP modules know the language where `right` is 1, its opposite at -1."""
    pair = twins(model, length=36, std=noise)
    generator = torch.Generator().manual_seed(SEED)
    embed_VD = torch.randn(model.vocab_size, model.dim, generator=generator, dtype=torch.float64)
    order_V = torch.randperm(model.vocab_size, generator=generator)
    head_VD = torch.empty_like(embed_VD)
    head_VD[order_V.roll(-1)] = embed_VD[order_V]
    for part in (pair.part, pair.uncached.part):
        tensors = dict(named_tensors(part))
        tensors["model.embed_tokens.weight"].copy_(embed_VD)
        tensors["lm_head.weight"].copy_(head_VD)
        for module in range(model.layers, model.layers + model.mtp.depth):
            name = f"model.layers.{module}.eh_proj.weight"
            eye_DD = torch.eye(model.dim)
            tensors[name].copy_(right * torch.cat([eye_DD, torch.zeros_like(eye_DD)], 1))
    return pair


def speculated_without_a_cache(pair: Twins, prompt: list[int], new: int) -> Counts:
    """The drafts that hold, by the uncached model reading everything again for each."""
    depth, text, end = pair.model.mtp.depth, list(prompt), len(prompt) + new
    counts = Counts(0, [0] * depth, [0] * depth)
    token = pair.choices(text)[-1]
    while len(text) < end - 1:
        text.append(token)
        drafts = pair.drafts(text)[: end - 1 - len(text)]
        choices = pair.choices(text + drafts)[len(text) - 1 :]
        held = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(drafts, choices))))
        for index in range(len(drafts)):
            counts.offered[index] += 1
            counts.accepted[index] += index < held
        counts.forwards += 1
        text += drafts[:held]
        token = choices[held]
    return counts


SOMETIMES = 0.21  # noise with which a draft in two or three holds


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(
    "right, noise, least, most", [(1, 0, 1, 1), (1, SOMETIMES, 0.1, 0.8), (-1, 0, 0, 0)]
)
def test_speculation_gives_the_greedy_text_and_the_drafts_of_the_uncached_model(
    right: float, noise: float, least: float, most: float, depth: int
) -> None:
    pair = successors(replace(BASE, mtp=MTPConfig(depth)), right, noise)
    prompt = random_tokens(1, seed=2)
    new = pair.length - len(prompt)
    tokens, counts = speculated(pair, prompt, new)
    assert tokens == decoded(pair, prompt, new)
    assert counts == speculated_without_a_cache(pair, prompt, new)
    assert least <= counts.accepted[0] / counts.offered[0] <= most
    assert counts.forwards == new - 1 - sum(counts.accepted)


def test_the_drafts_see_a_prompt_that_is_read_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, prompt = successors(replace(BASE, mtp=MTPConfig(2)), 1, SOMETIMES), random_tokens(11)
    monkeypatch.setattr(cached_model, "PROMPT_CHUNK", 3)
    tokens, counts = speculated(pair, prompt, 20)
    assert tokens == decoded(pair, prompt, 20)
    assert counts == speculated_without_a_cache(pair, prompt, 20)


def test_ties_are_decided_as_without_drafts() -> None:
    pair = twins(replace(BASE, mtp=MTPConfig(1)), torch.float32)
    head_VD = pair.part.lm_head.weight.data  # pairs of tokens that only rounding tells apart
    noise_VD = torch.randn(head_VD[1::2].shape, generator=torch.Generator().manual_seed(SEED))
    head_VD[1::2] = head_VD[:-1:2] * (1 + 1e-7 * noise_VD)
    for seed in range(3):
        prompt = random_tokens(4, seed)
        assert speculated(pair, prompt, 20)[0] == decoded(pair, prompt, 20)


# --- Together -----------------------------------------------------------------------------------

LENGTHS, NEW = (4, 1, 9, 4, 2), (12, 20, 3, 7, 16)


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("temperature", [0, 1.3])
def test_texts_decoded_together_are_those_decoded_alone(
    name: str, temperature: float, slots: int
) -> None:
    pair = twins(VARIANTS[name])
    prompts = [random_tokens(length, seed=length + n) for n, length in enumerate(LENGTHS)]

    def choose(seed: int) -> Choose:
        return Sampler(temperature, 0.9, seed) if temperature else greedy

    alone = [
        decoded_together(pair, [prompt], [new], choose=choose(seed))[0]
        for seed, (prompt, new) in enumerate(zip(prompts, NEW))
    ]
    assert [len(text) for text in alone] == list(NEW)
    assert decoded_together(pair, prompts, list(NEW), slots, choose(0)) == alone
    end = alone[1][5]  # now some end by themselves, one of them sooner than others
    cut = [text[: text.index(end) + 1] if end in text else text for text in alone]
    assert cut != alone
    assert decoded_together(pair, prompts, list(NEW), slots, choose(0), end) == cut


def test_what_a_longer_text_left_in_memory_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = twins(BASE)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *shape: x.new_full(*shape, torch.nan))
    prompts, new = [random_tokens(2), random_tokens(12)], [9, 9]
    alone = [decoded_together(pair, [p], [n])[0] for p, n in zip(prompts, new)]
    assert decoded_together(pair, prompts, new, slots=2) == alone


def test_logits_that_are_no_numbers_are_told_by_the_prompt() -> None:
    pair = twins(BASE)
    pair.part.embed_tokens.weight.data[7] = torch.nan
    with pytest.raises(NotFinite) as raised:
        decoded_together(pair, [[1], [2], [3], [4, 7]], [1, 5, 5, 5], slots=3)
    assert raised.value.row == 3


# --- Sampling -----------------------------------------------------------------------------------


def test_nucleus_is_the_smallest_set_with_the_probability_asked_for() -> None:
    probability_V = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
    assert nucleus(probability_V, 0.65).tolist() == [0, 0.4, 0, 0.3]
    assert nucleus(probability_V, 0.75).tolist() == [0, 0.4, 0.2, 0.3]
    assert nucleus(probability_V, 1e-9).tolist() == [0, 0.4, 0, 0]
    assert nucleus(probability_V, 1.0).tolist() == probability_V.tolist()


def test_samples_follow_temperature_within_the_nucleus() -> None:
    wanted_V, temperature, draws = torch.tensor([0.5, 0.1, 0.3, 0.06, 0.04]), 1.7, 4000
    logits_V = wanted_V.log() * temperature + 11
    sampler = Sampler(temperature, 0.85, seed=1)
    drawn = [sampler(logits_V.expand(2, -1), [0, 1]) for _ in range(draws // 2)]
    drawn_V = torch.tensor(drawn).flatten().bincount(minlength=5)
    expected_V = torch.tensor([0.5, 0.1, 0.3, 0, 0]) / 0.9
    deviation_V = (draws * expected_V * (1 - expected_V)).sqrt()
    assert drawn_V[3:].tolist() == [0, 0]
    assert ((drawn_V - draws * expected_V).abs()[:3] < 4 * deviation_V[:3]).all()


def test_a_seed_is_a_text_and_a_small_nucleus_is_greedy() -> None:
    pair, prompt = twins(BASE), random_tokens(4)

    def sampled(seed: int, top_p: float) -> list[int]:
        return decoded_together(pair, [prompt], [18], choose=Sampler(1.0, top_p, seed))[0]

    assert sampled(1, 0.9) == sampled(1, 0.9) != sampled(2, 0.9)
    assert sampled(1, 1e-9) == decoded(pair, prompt, 18)

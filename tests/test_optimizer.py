"""The optimizer against plain ones on whole tensors: in every layout, sharded or not, by every rule
and in every type, the same weights.

Gradients are given, so that what is compared is the optimizer alone; one test trains.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.ranks.process import Process
from parallel.reduce.bucket import make_buckets
from tests.commands import TINY, finish, start
from tests.distributed import run_world
from tests.test_equivalence import LAYOUTS, SCHEDULES, Case, run_case, run_cases
from trainer.build.layout import Layout, build
from trainer.config.schema import Config, OptimizerConfig, PrecisionConfig
from trainer.config.validate import validate
from trainer.errors import ConfigError
from trainer.model.names import named_tensors, released_names
from trainer.optim.muon import Muon
from trainer.optim.rule import Piece
from trainer.optim.state import ReleasedTensor, released_slices

STEPS, RATE, CLIP = 3, 1e-2, 0.5
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Setting:
    """A layout and an optimizer. mesh: (pipeline, expert, expert_data)."""

    schedule: str
    mesh: tuple[int, int, int]
    mtp: int = 1
    layers: int = 4
    precision: str = "float64"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    @property
    def world(self) -> int:
        return self.mesh[0] * self.mesh[1] * self.mesh[2]

    def config(self) -> Config:
        case = Case(self.schedule, self.mesh, self.mtp, False, True, self.layers).config()
        case.data.global_batch = 48
        return replace(
            case,
            model=replace(case.model, dense_dim=23),  # no number of copies divides it
            precision=PrecisionConfig(self.precision),
            optimizer=replace(self.optimizer, clip=CLIP),
        )


# DualPipe: mirrors, an embedding on both ends, experts over two ranks. A pipeline whose first stage
# has no experts and shares its embedding with the last. Three copies. Copies of experts and of all.
FEW = [
    ("dualpipe", (2, 2, 1), 1, 4),
    ("1f1b", (4, 1, 1), 1, 4),
    ("1f1b", (1, 1, 3), 0, 4),
    ("gpipe", (1, 2, 2), 1, 4),
]
EVERY = [
    (schedule, mesh, mtp, 8 if mesh[0] == 4 else 4)
    for mesh in LAYOUTS
    for schedule in SCHEDULES
    for mtp in (0, 1)
    if not (schedule == "dualpipe" and mesh[0] == 1)
]


def gradient(name: str, shape: tuple[int, ...], step: int) -> Tensor:
    """Of a tensor of the released checkpoints, summed over its copies: multiples of 1/64, so that
    no sum of parts of it is rounded, whatever the type and the order."""
    seed = int.from_bytes(hashlib.sha256(f"{name}/{step}".encode()).digest()[:4], "little")
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-64, 65, shape, generator=generator).double() / 64


def steps_of(layout: Layout, rank: int) -> list[float]:
    """Steps on given gradients, each copy with its part of them; the norms."""
    optimizer, norms = layout.optimizer, []
    for step in range(STEPS):
        optimizer.zero()
        for name, parameter in layout.part.named_parameters():
            copies = layout.copies_of[name]
            for released, grad in released_names(layout.part, name, parameter.grad):
                whole = gradient(released, tuple(grad.shape), step)
                grad += whole - (len(copies) - 1) if rank == copies[0] else 1.0
        square = optimizer.reduce()
        if dist.is_initialized():
            dist.all_reduce(square)
        norm = square.sqrt()
        norms.append(float(norm))
        optimizer.step(norm, RATE)
    return norms


def stepped(process: Process, settings: list[Setting]) -> list[dict[str, Any]]:
    return [stepped_one(process, setting) for setting in settings]


def stepped_one(process: Process, setting: Setting) -> dict[str, Any]:
    config = setting.config()
    validate(config, process.world)
    layout = build(config, process, torch.device("cpu"))
    norms = steps_of(layout, process.rank)
    state = layout.optimizer.state()
    return {
        "norms": norms,
        "weights": {name: array(weight) for name, weight in named_tensors(layout.part)},
        "pieces": [(f.name, f.kind, f.start, array(f.values)) for f in state],
        "held": sum(p.numel() for p in layout.part.parameters()),
        "copies": {
            released: len(layout.copies_of[name])
            for name, parameter in layout.part.named_parameters()
            for released, _ in released_names(layout.part, name, parameter.data)
        },
    }


def array(tensor: Tensor) -> np.ndarray:
    wide = tensor.detach().double().numpy()
    return wide.copy()


@dataclass
class Plain:
    """Whole tensors, one process, torch's own AdamW on masters."""

    masters: dict[str, Tensor]
    config: OptimizerConfig

    def run(self) -> tuple[list[float], Arrays]:
        norms = []
        adamw = self.adamw()
        for step in range(STEPS):
            for name, master in self.masters.items():
                master.grad = gradient(name, tuple(master.shape), step).to(master.dtype)
            every = torch.cat([m.grad.double().flatten() for m in self.masters.values()])
            norms.append(float(every.norm()))
            for master in self.masters.values():
                master.grad *= min(1.0, CLIP / norms[-1])
            self.step(adamw)
        return norms, {name: array(master) for name, master in self.masters.items()}

    def adamw(self) -> torch.optim.AdamW:
        matrices = [m for m in self.masters.values() if m.ndim > 1]
        norms = [m for m in self.masters.values() if m.ndim == 1]
        c = self.config
        groups = [
            {"params": matrices, "weight_decay": c.weight_decay},
            {"params": norms, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=RATE, betas=c.betas, eps=c.eps)

    def step(self, adamw: torch.optim.AdamW) -> None:
        adamw.step()
        if self.config.moments == "bfloat16":
            for state in adamw.state.values():
                for kind in ("exp_avg", "exp_avg_sq"):
                    state[kind] = state[kind].bfloat16().to(state[kind].dtype)


class PlainMuon(Plain):
    """Muon from the definition: singular values, each iterated on by itself."""

    def adamw(self) -> torch.optim.AdamW:
        self.momentum: dict[str, Tensor] = {}
        every, self.masters = self.masters, {n: m for n, m in self.masters.items() if by_adamw(n)}
        adamw = super().adamw()
        self.masters = every
        return adamw

    def step(self, adamw: torch.optim.AdamW) -> None:
        super().step(adamw)
        c = self.config
        for name, master in self.masters.items():
            if by_adamw(name):
                continue
            g = master.grad
            before = self.momentum.get(name, torch.zeros_like(g))
            momentum = c.muon_momentum * before + (1 - c.muon_momentum) * g
            ahead = c.muon_momentum * momentum + (1 - c.muon_momentum) * g
            narrow = c.moments == "bfloat16"
            self.momentum[name] = momentum.bfloat16().to(g.dtype) if narrow else momentum
            u, s, vh = torch.linalg.svd(ahead, full_matrices=False)
            s = s / ahead.norm()
            for a, b, d in iterations(c):
                s = a * s + b * s**3 + d * s**5
            size = RATE * c.muon_rms * max(master.shape) ** 0.5
            master.mul_(1 - RATE * c.weight_decay).sub_(size * (u * s) @ vh)


def iterations(config: OptimizerConfig) -> list[tuple[float, float, float]]:
    quintic = (3.4445, -4.7750, 2.0315)
    hybrid = config.newton_schulz == "hybrid"
    return [quintic] * 8 + [(2, -1.5, 0.5)] * 2 if hybrid else [quintic] * 5


def by_adamw(name: str) -> bool:
    return name.endswith("norm.weight") or name in {"model.embed_tokens.weight", "lm_head.weight"}


def initial(setting: Setting) -> dict[str, Tensor]:
    """The weights that every layout starts from, as masters."""
    alone = replace(setting, schedule="1f1b", mesh=(1, 1, 1)).config()
    part = build(alone, Process(), torch.device("cpu")).part
    wide = torch.promote_types(next(part.parameters()).dtype, torch.float32)
    return {name: t.detach().to(wide, copy=True) for name, t in named_tensors(part)}


def require_equal(
    settings: list[Setting], plain: type[Plain] = Plain, atol: float = 1e-6
) -> list[tuple[Setting, list[dict[str, Any]]]]:
    """Every setting gives what the plain optimizer does; what each gave, by rank."""
    results = []
    for world in sorted({setting.world for setting in settings}):
        of_world = [setting for setting in settings if setting.world == world]
        by_rank = run_world(world, stepped, of_world, timeout=400)
        results += list(zip(of_world, map(list, zip(*by_rank))))
    for setting, by_rank in results:
        norms, masters = plain(initial(setting), setting.optimizer).run()
        for rank, result in enumerate(by_rank):
            assert result["norms"] == pytest.approx(norms, rel=1e-12)
            require_same(f"rank {rank} of {setting}", setting, result, masters, atol)
        require_whole(by_rank, masters)
    return results


def require_same(
    where: str, setting: Setting, result: dict[str, Any], masters: Arrays, atol: float
) -> None:
    for name, kind, first, values in result["pieces"]:
        if kind == "master":
            expected = masters[name].reshape(-1)[first : first + len(values)]
            np.testing.assert_allclose(
                values, expected, rtol=0, atol=atol, err_msg=f"{name} from {first} on {where}"
            )
    for name, weight in result["weights"].items():
        rounding = 2**-8 * np.abs(masters[name]) if setting.precision == "bfloat16" else 0
        assert (np.abs(weight - masters[name]) <= rounding + atol).all(), f"{name} on {where}"


def require_whole(by_rank: list[dict[str, Any]], masters: Arrays) -> None:
    """Every master is somewhere, and the copies of a weight agree to the bit."""
    seen = {name: np.zeros(master.size) for name, master in masters.items()}
    for name, kind, first, values in (piece for result in by_rank for piece in result["pieces"]):
        if kind == "master":
            seen[name][first : first + len(values)] = 1
    assert all(elements.all() for elements in seen.values())
    for name in masters:
        one, *others = (r["weights"][name] for r in by_rank if name in r["weights"])
        assert all(np.array_equal(one, other) for other in others), name


def settings(layouts: list[Any], precision: str = "float64", **optimizer: Any) -> list[Setting]:
    return [
        Setting(schedule, mesh, mtp, layers, precision, OptimizerConfig(**optimizer))
        for schedule, mesh, mtp, layers in layouts
    ]


def require_divided(setting: Setting, results: list[Any]) -> None:
    """Each kind of state of each tensor is on one of its copies, and each rank has its part."""
    kinds = {kind for result in results for _, kind, _, _ in result["pieces"]}
    for kind in kinds:
        for result in results:
            held = sum(len(values) for _, k, _, values in result["pieces"] if k == kind)
            sizes = {name: weight.size for name, weight in result["weights"].items()}
            ideal = sum(size / result["copies"][name] for name, size in sizes.items())
            assert held <= 1.05 * ideal, f"{held} elements of {kind}, {ideal} wanted: {setting}"


@pytest.mark.parametrize(
    ("precision", "atol"),
    [pytest.param("float64", 1e-12, marks=pytest.mark.slow), ("bfloat16", 1e-6)],
)
def test_sharded_adamw_is_adamw_on_masters(precision: str, atol: float) -> None:
    few = settings(FEW, precision, zero="shard")
    for setting, by_rank in require_equal(few, atol=atol):
        require_divided(setting, by_rank)


def test_offload_changes_no_bit() -> None:
    """Masters apart from the weights, whether these are narrower or as wide; and moments."""
    beside = settings(FEW[:1], "bfloat16", zero="shard", moments="bfloat16") + settings(
        FEW[:1], "float32"
    )
    apart = [replace(each, optimizer=replace(each.optimizer, offload=True)) for each in beside]
    for result in run_world(4, stepped, [*beside, *apart]):
        for one, other in zip(result[: len(beside)], result[len(beside) :]):
            assert one["norms"] == other["norms"]
            for name, weight in one["weights"].items():
                np.testing.assert_array_equal(weight, other["weights"][name])
            for (*what, values), (*same, others) in zip(one["pieces"], other["pieces"]):
                assert what == same
                np.testing.assert_array_equal(values, others)


@pytest.mark.slow
def test_deepspeed_shards_to_the_same_weights() -> None:
    """As DeepSpeed's partitions have no gaps, copies of a parameter may end one element apart."""
    pytest.importorskip("deepspeed")
    chosen = settings(FEW, "bfloat16", zero="deepspeed") + settings(
        FEW, "float32", zero="deepspeed"
    )
    for setting, by_rank in require_equal(chosen):
        require_divided(setting, by_rank)


@pytest.mark.slow
def test_deepspeed_compiles_nothing_and_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no compiler to be found, a run starts, trains, and prints what any run does."""
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    code, out, err = finish(start(tmp_path, "--config", TINY, "--optimizer.zero", "deepspeed"))
    assert (code, err) == (0, "")
    assert "after step 3" in out and not any(word in out for word in ("DeepSpeed", "MA ", "Warn"))


def test_what_deepspeed_does_not_do_is_refused() -> None:
    for key, value in (("name", "muon"), ("moments", "bfloat16")):
        (setting,) = settings(FEW[:1], "float32", zero="deepspeed", **{key: value})
        with pytest.raises(ConfigError, match=f"optimizer.{key} = {value}.*set optimizer.zero"):
            validate(setting.config(), setting.world)
    (setting,) = settings(FEW[:1], "float64", zero="deepspeed")
    with pytest.raises(ConfigError, match=r"precision\.parameters = float64"):
        validate(setting.config(), setting.world)


@pytest.mark.parametrize("zero", [pytest.param("off", marks=pytest.mark.slow), "shard"])
def test_muon_is_muon_on_whole_matrices(zero: str) -> None:
    few = settings(FEW[:2], name="muon", zero=zero)
    few += settings(FEW[2:], name="muon", zero=zero, newton_schulz="hybrid")
    require_equal(few, PlainMuon, atol=1e-10)


def test_muon_is_torchs_but_for_its_rounding() -> None:
    """torch.optim.Muon iterates in bfloat16, so the two differ by some of its roundings."""
    generator = torch.Generator().manual_seed(1)
    value, *gradients = torch.randn(4, 24, 16, generator=generator)
    theirs = nn.Parameter(value.clone())
    torchs = torch.optim.Muon([theirs], lr=RATE, adjust_lr_fn="match_rms_adamw")
    rule, master, momentum = Muon(OptimizerConfig()), value.clone(), torch.zeros(24 * 16)
    for step, gradient in enumerate(gradients):
        flat = gradient.reshape(-1)
        piece = Piece(0, (-1, 24, 16), flat, flat, master.view(-1), {"momentum": momentum})
        rule.update(piece, RATE, torch.tensor(float(step)))
        theirs.grad = gradient
        torchs.step()
    assert (master - theirs).norm() < 0.02 * (theirs - value).norm()


def test_matrices_are_dealt_out_so_that_no_copy_has_much_more_work() -> None:
    shapes = [(48, 16)] * 7 + [(16, 32)] * 5 + [(8, 8)]
    tensors_of = {f"{i:02}": [ReleasedTensor(f"{i}", shape)] for i, shape in enumerate(shapes)}
    parameters = {name: nn.Parameter(torch.zeros(t[0].shape)) for name, t in tensors_of.items()}
    copies_of = dict.fromkeys(parameters, (0, 1, 2))
    (bucket,) = make_buckets(parameters, copies_of, {}, lambda name: "", lambda name: frozenset())
    cut = Muon(OptimizerConfig()).cut(bucket, tensors_of)
    dealt = [
        [tensor for start, stop in ranges
         for tensor, _, _, _ in released_slices(bucket, tensors_of, start, stop)]
        for ranges in cut
    ]  # fmt: skip
    assert sorted(t.name for share in dealt for t in share) == sorted(map(str, range(13)))
    work = [sum(t.shape[0] * t.shape[1] * min(t.shape) for t in share) for share in dealt]
    assert max(work) - min(work) <= 16 * 32 * 16  # less than the next matrix would be
    assert all(share for share in dealt)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_in_bfloat16_are_rounded_once_per_step(name: str) -> None:
    plain = Plain if name == "adamw" else PlainMuon
    kinds = {"exp_avg", "exp_avg_sq"} | ({"momentum"} if name == "muon" else set())
    chosen = [
        setting
        for precision in ("float64", "bfloat16")
        for setting in settings(FEW[:1], precision, name=name, zero="shard", moments="bfloat16")
    ]
    for _, by_rank in require_equal(chosen, plain):
        for _, kind, _, values in (piece for result in by_rank for piece in result["pieces"]):
            if kind in kinds:
                rounded = torch.from_numpy(values).bfloat16().double().numpy()
                assert np.array_equal(values, rounded)


@pytest.mark.matrix
@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("zero", ["off", "shard"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_every_layout(world: int, name: str, zero: str, precision: str) -> None:
    plain = Plain if name == "adamw" else PlainMuon
    every = settings(EVERY, precision, name=name, zero=zero)
    require_equal([setting for setting in every if setting.world == world], plain)


class ShardedCase(Case):
    def config(self) -> Config:
        config = super().config()
        config.optimizer.zero = "shard"
        return config


def test_sharded_training_gives_the_numbers_of_one_process() -> None:
    alone = run_case(Process(), Case("1f1b", (1, 1, 1), 1, recompute=False, overlap=False))
    case = ShardedCase("dualpipe", (2, 2, 1), 1, recompute=False, overlap=True)
    for (result,) in run_world(4, run_cases, [case]):
        for ours, theirs in zip(result["steps"], alone["steps"]):
            assert ours.loss == pytest.approx(theirs.loss, rel=1e-10)
            assert ours.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-10)
        for name, weight in result["weights"].items():
            np.testing.assert_allclose(weight, alone["weights"][name], rtol=0, atol=1e-10)

"""What was measured, as one JSON object."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from trainer.bench.exchange_times import StepTimes, Times, Where
from trainer.bench.profile import Profile
from trainer.bench.throughput import Measured, compare
from trainer.config.derived import mesh_of

GIB = 2**30
PLACES: tuple[Where, ...] = ("pairs", "lone")
MTP_NOTE = "steps compute MTP modules, which TFLOP/s and MFU do not count, as DeepSeek states them"


def routing_of(balanced: bool) -> str:
    return "forced to balance" if balanced else "not forced to balance"


def as_json(found: Profile, link_rate: str | None, balanced: bool) -> dict[str, Any]:
    """One object; times in seconds per step, shares from 0 to 1, null where there is nothing. Rates
    and parts at the top are those of the first mode, the one that is predicted."""
    config, comparison = found.config, compare(found.modes)
    return {
        "schedule": config.pipeline.schedule,
        "mesh": asdict(config.mesh),
        "world": mesh_of(config).world,
        "link_rate": link_rate,
        "data": {"tokens": "random", "seed": config.run.seed, "routing": routing_of(balanced)},
        "step_seconds": found.first.median_seconds,
        **_rates(found, found.first.median_seconds),
        "parts_seconds": asdict(found.first.parts),
        "peak": {"tflops_per_rank": found.peak.flops / 1e12, "source": found.peak.source},
        "memory": _memory(found),
        "predicted": {
            "source": found.predicted.source,
            "step_seconds": found.predicted.seconds,
            **_rates(found, found.predicted.seconds),
            "parts_seconds": asdict(found.predicted.parts),
            "measured_over_predicted": found.measured_over_predicted,
        },
        "modes": {mode: _mode(found, result) for mode, result in found.modes.items()},
        "comparison": None if comparison is None else asdict(comparison),
        "notes": notes(found),
    }


def notes(found: Profile) -> list[str]:
    """What a reader of the figures has to know."""
    return [MTP_NOTE] if found.config.model.mtp.depth else []


def _rates(found: Profile, seconds: float) -> dict[str, Any]:
    rates = found.rates(seconds)
    return {
        "tokens_per_second": rates.tokens_per_step / seconds,
        "tokens_per_second_per_rank": rates.tokens_per_second_per_gpu,
        "tflops_per_rank": rates.tflops_per_gpu,
        "mfu": rates.mfu,
    }


def _memory(found: Profile) -> dict[str, Any]:
    used, reserved, planned = found.memory.used, found.memory.reserved, found.planned_memory
    return {
        "of": "resident" if reserved is None else "allocated by torch",
        "peak_gib_by_rank": _gib(used),
        "reserved_gib_by_rank": reserved and _gib(reserved),
        "planned_gib_by_pipeline_rank": planned and _gib(planned),
    }


def _gib(sizes: list[int]) -> list[float]:
    return [size / GIB for size in sizes]


def _mode(found: Profile, result: Measured) -> dict[str, Any]:
    seconds = result.step_seconds
    return {
        "steps": len(seconds),
        "step_seconds": {
            "median": result.median_seconds,
            "min": min(seconds),
            "max": max(seconds),
            "all": seconds,
        },
        **_rates(found, result.median_seconds),
        "parts_seconds": asdict(result.parts),
        "load_max_over_mean": result.load_max,
        "mean_over_ranks": _step_times(result.times),
        "by_rank": [_step_times(times) for times in result.by_rank],
    }


def _step_times(times: StepTimes) -> dict[str, Any]:
    return {
        "all_to_all": {
            "all": _times(times.total(*PLACES)),
            **{where: _times(times.total(where)) for where in PLACES},
            "by_kind": {
                where: {kind: _times(t) for kind, t in times.all_to_alls[where].items()}
                for where in PLACES
            },
        },
        "pipeline_messages_waited": times.messages,
        "computing": times.computing,
        "elsewhere": times.elsewhere,
    }


def _times(times: Times) -> dict[str, float | None]:
    return asdict(times) | {"hidden": times.hidden, "hidden_transfer": times.hidden_transfer}

"""Measure training steps: tokens per second, TFLOP/s and MFU, where the time of a step goes, how
much of the all-to-alls is hidden, memory, and what the planner predicts of the same config.

Starts one process for each rank of the config's mesh by itself, or runs as one rank where torchrun
has started it.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout  # noqa: F401  first: it says where the imports below come from

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from parallel.files.outputs import require_outputs
from parallel.ranks.environment import Place, place_from_environment
from trainer.bench.limited_link import bytes_per_second, limited_link
from trainer.bench.step_options import add_step_options, require_steps
from trainer.config.derived import mesh_of
from trainer.config.parse import config_parser, parse
from trainer.config.schema import Config
from trainer.config.validate import validate
from trainer.dry.command import count_step
from trainer.errors import ConfigError
from trainer.run.exit import reported, signals_as_exceptions
from trainer.run.local_ranks import own_command, require_room, run_ranks_here
from trainer.run.rank import run_rank, said_once
from trainer.run.signals import StopRequest
from trainer.run.supervise import Child, supervise

if TYPE_CHECKING:
    from trainer.bench.exchange_times import Mode
    from trainer.bench.profile import Profile
    from trainer.bench.throughput import Trial

EXAMPLES = """\
examples:
  python launch/throughput.py --config configs/cpu_4proc.yaml
  python launch/throughput.py --config configs/cpu_4proc.yaml --balanced-routing --json
  python launch/throughput.py --config configs/cpu_4proc.yaml --trace trace.json
  python launch/throughput.py --config configs/overlap_2proc.yaml --emulate-rank 1 --link-rate 1gbit
  python launch/throughput.py --config configs/deepseek_v3_2048.yaml --emulate-rank 112
  python launch/throughput.py --config configs/overlap_2proc.yaml --compare-overlap \\
      --link-rate 1gbit
  python launch/throughput.py --config configs/cpu_4proc.yaml --save-costs costs.yaml \\
      --save-timeline step.json
  torchrun --nproc-per-node 2 launch/throughput.py --config configs/overlap_2proc.yaml

What the figures mean; docs/throughput.md has more:
  TFLOP/s, MFU  of the main model, forward and backward, without MTP; causal counts half of the
              products of attention, non-causal all. MFU is the share of the peak of cluster.gpu by
              its datasheet, or on a CPU of that of a large product measured in the run.
  parts       of the schedule, mean over ranks and steps: items of each kind, with what they wait
              for all-to-alls; bubble, all other waiting; sums of gradients and the optimizer.
  predicted   on CUDA the plan of the config; on a CPU its schedule, simulated with costs of its
              own stages that are measured in up to three more steps of each kind.
  in flight   of an all-to-all, from this rank's start until it has completed here; contains the
              wait for late peers and queues, and two in flight at once count twice.
  transfer    the part of it after the last rank has started (ranks on one machine only).
  waited      while the rank stood still for the result: what the step loses.
  hidden      1 - waited / in flight. Late peers and queues make it look better than it is.
  hidden transfer     1 - waited / transfer, counting only waits after the last rank has started.
  hidden against off  1 - waited with overlap / waited without: of two times that were both lost;
              a wait for a late peer counts in full. With --compare-overlap only.
Pairs are a forward and a backward run together; all else is lone. Tokens are random, from run.seed;
routing depends on the data, so the load of the experts is shown with the result, and
--balanced-routing forces it to be even, as benchmarks do: no model trains so.
"""
COST_STEPS = 3  # of each kind at most, where their costs are not what is asked for
_RATE_INSIDE = "TANDEM_LINK_RATE"


@dataclass(frozen=True)
class Options:
    """What the command adds to a config."""

    steps: int
    warmup: int
    compare_overlap: bool
    balanced_routing: bool
    plan_memory: bool
    link_rate: str | None
    emulate_rank: int | None
    save_costs: Path | None
    save_timeline: Path | None
    trace: Path | None
    json: bool

    def require_sense(self, world: int, place: Place | None) -> None:
        """Raise ConfigError for what cannot be measured or written."""
        require_steps(self.steps, self.warmup)
        if place is not None and self.link_rate != os.environ.get(_RATE_INSIDE):
            raise ConfigError(
                "--link-rate starts its own processes: run it with python, not torchrun"
            )
        if self.link_rate is not None and world == 1:
            raise ConfigError("--link-rate needs several processes to have a link: mesh asks for 1")
        trace = self.trace and _of_rank(self.trace, 0 if place is None else place.rank)
        named = {
            "--save-costs": self.save_costs, "--save-timeline": self.save_timeline, "--trace": trace
        }  # fmt: skip
        outputs = {option: path for option, path in named.items() if path is not None}
        require_outputs(outputs, outputs)

    def trial(self, config: Config) -> Trial:
        from trainer.bench.throughput import Trial

        chosen: Mode = "on" if config.pipeline.overlap else "off"
        modes: tuple[Mode, ...] = ("on", "off") if self.compare_overlap else (chosen,)
        return Trial(modes, self.steps, self.warmup)

    @property
    def cost_steps(self) -> tuple[int, int]:
        """(steps, warm-up) of each kind that costs are measured with."""
        if self.save_costs or self.save_timeline:
            return self.steps, self.warmup
        return min(self.steps, COST_STEPS), min(self.warmup, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code, after one line on what cannot be done."""
    return reported("throughput", lambda: _main(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: Sequence[str]) -> int:
    with said_once():
        config, options = _parse(arguments)
        place, world = place_from_environment(), mesh_of(config).world
        if options.emulate_rank is not None:
            validate(config, world)
            return _emulate(config, options, options.emulate_rank, place)
        if place is None:
            require_room("throughput", world)
        validate(config, world if place is None else place.world)
        options.require_sense(world, place)
    if place is None and world > 1:
        return _start(world, options)
    run_rank("throughput", lambda stop: _rank(config, options, stop))


def _parse(arguments: Sequence[str]) -> tuple[Config, Options]:
    parser = config_parser("throughput", __doc__ or "", EXAMPLES)
    add = parser.add_argument
    add_step_options(parser, steps=5, of="mode")
    add("--compare-overlap", action="store_true", help="Alternate steps with overlap on and off.")
    add("--balanced-routing", action="store_true", help="Give every expert as many tokens.")
    add("--plan-memory", action="store_true", help="Also plan the memory of tensors by rank.")
    add("--link-rate", type=str, default=None, help="Limit the loopback, as in 1gbit; needs root.")
    add(
        "--emulate-rank", type=int, default=None, metavar="R",
        help="Measure rank R alone in this process; others are emulated, links of --link-rate.",
    )  # fmt: skip
    add("--save-costs", type=Path, default=None, help="Write costs for simulate.py --costs.")
    add("--save-timeline", type=Path, default=None, help="Write a step for simulate.py --measured.")
    add("--trace", type=Path, default=None, help="Write a profiled step of each rank for Perfetto.")
    add("--json", action="store_true", help="Print one JSON object instead of a table.")
    config, given = parse(parser, arguments)
    return config, Options(**{name: given[name] for name in Options.__dataclass_fields__})


def _of_rank(path: Path, rank: int) -> Path:
    """trace.rank0.json and so on for trace.json."""
    name, dot, endings = path.name.partition(".")
    return path.with_name(f"{name}.rank{rank}{dot}{endings}")


def _start(world: int, options: Options) -> int:
    """Run this command as all ranks, on a limited link if asked to; the exit code."""
    if options.link_rate is None or options.link_rate == os.environ.get(_RATE_INSIDE):
        return run_ranks_here("throughput", world)
    environment = {"GLOO_SOCKET_IFNAME": "lo", _RATE_INSIDE: options.link_rate}
    with signals_as_exceptions(), limited_link(options.link_rate) as inside:
        command = Child("the process on the link", [*inside, *own_command()], environment)
        return supervise("throughput", [command])


def _rank(config: Config, options: Options, stop: StopRequest) -> None:
    from parallel.expert.router import choose
    from parallel.ranks.process import Process, join, leave
    from trainer.bench.balanced_routing import choose_balanced
    from trainer.bench.profile import profile
    from trainer.bench.step_trace import write_step_trace
    from trainer.bench.throughput import prepared

    process = Process.from_environment()
    device = process.device(config.run.device)
    if device.type == "cuda" and (options.save_costs or options.save_timeline):
        raise ConfigError(
            "--save-costs and --save-timeline time items by the host's clock, which does not see "
            "the kernels of CUDA: set run.device to cpu"
        )
    roll_call = join(process, device, timedelta(seconds=config.run.timeout), "env://")
    with roll_call.held_on_failure(lambda: stop.asked):
        trial = options.trial(config)
        routing = choose_balanced if options.balanced_routing else choose
        layout = prepared(config, process, trial, routing)
        found = profile(layout, trial, *options.cost_steps, options.plan_memory)
        if found is not None:
            _report(found, options)
        if options.trace:
            write_step_trace(layout, _of_rank(options.trace, process.rank))
    leave()


def _emulate(config: Config, options: Options, rank: int, place: Place | None) -> int:
    """One rank, in this process."""
    if place is not None:
        raise ConfigError("--emulate-rank is one process: run it with python, not torchrun")
    others = (options.compare_overlap, options.save_costs, options.save_timeline, options.trace)
    if any(others) or options.plan_memory:
        raise ConfigError(
            "--emulate-rank measures steps alone: leave out --compare-overlap, --plan-memory, "
            "--save-costs, --save-timeline and --trace"
        )
    require_steps(options.steps, options.warmup)
    from trainer.bench.emulated_rank import as_json, emulate, room_for, show, without_deepep

    rate = None if options.link_rate is None else bytes_per_second(options.link_rate)
    room = room_for(config, rank)
    if not room.enough:
        print(f"throughput: {room.describe()}: counted, not run", file=sys.stderr)
        return count_step(without_deepep(config), rank, options.json)
    found = emulate(config, rank, options.trial(config), rate)
    if options.json:
        print(json.dumps(as_json(found), indent=2), flush=True)
    else:
        show(found)
    return 0


def _report(found: Profile, options: Options) -> None:
    """Print what was measured, and write what was asked for."""
    from parallel.study.costs import write_costs
    from parallel.study.timeline_file import write_timeline
    from trainer.bench.throughput_report import as_json
    from trainer.bench.throughput_tables import show

    if options.json:
        report = as_json(found, options.link_rate, options.balanced_routing)
        print(json.dumps(report, indent=2), flush=True)
    else:
        show(found, options.link_rate, options.balanced_routing)
    if found.costs is not None and options.save_costs:
        write_costs(found.costs.costs, options.save_costs)
    if found.costs is not None and options.save_timeline:
        write_timeline(found.costs.timeline, options.save_timeline)


if __name__ == "__main__":
    sys.exit(main())

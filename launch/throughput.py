"""Measure training steps: step time, tokens a second, and how much of the all-to-alls is hidden.

Starts one process for each rank of the config's mesh by itself, or runs as one rank where torchrun
has started it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from trainer.bench.limited_link import LinkError, limited_link
from trainer.config.derived import mesh_of
from trainer.config.parse import config_parser, parse
from trainer.config.schema import Config
from trainer.config.validate import validate
from trainer.errors import ConfigError
from trainer.run.rank import refuse, run_guarded
from trainer.run.signals import StopRequest

if TYPE_CHECKING:
    from parallel.ranks.process import Process
    from trainer.bench.exchange_times import Mode
    from trainer.bench.throughput import Trial

EXAMPLES = """\
examples:
  python launch/throughput.py --config configs/overlap_2proc.yaml --steps 5
  python launch/throughput.py --config configs/overlap_2proc.yaml --compare-overlap \\
      --link-rate 1gbit
  python launch/throughput.py --config configs/cpu_4proc.yaml --compare-overlap --json
  python launch/throughput.py --config configs/cpu_4proc.yaml --save-costs costs.yaml \\
      --save-timeline step.json
  torchrun --nproc-per-node 2 launch/throughput.py --config configs/overlap_2proc.yaml

What the figures mean, in seconds a step, mean over ranks:
  in flight   from this rank's start of an all-to-all until it has completed here; contains the wait
              for late peers and queues, and two in flight at once count twice.
  transfer    the part of it after the last rank has started (ranks on one machine only).
  waited      while the rank stood still for the result: what the step loses.
  hidden      1 - waited / in flight. Late peers and queues make it look better than it is.
  hidden transfer     1 - waited / transfer, counting only waits after the last rank has started.
  hidden against off  1 - waited with overlap / waited without: of two times that were both lost;
              a wait for a late peer counts in full. With --compare-overlap only.
Pairs are a forward and a backward run together; all else is lone. Waits for messages of the
pipeline are not all-to-alls and are shown apart. Tokens are random, from run.seed; routing depends
on the data, so the load of the experts is shown with the result. docs/overlap.md has more.
"""
_RATE_INSIDE = "TANDEM_LINK_RATE"


@dataclass(frozen=True)
class Options:
    """What the command adds to a config."""

    steps: int
    warmup: int
    compare_overlap: bool
    link_rate: str | None
    save_costs: Path | None
    save_timeline: Path | None
    json: bool

    def problem(self, under_torchrun: bool) -> str | None:
        if self.steps < 1:
            return f"--steps must be 1 or more, got {self.steps}"
        if self.warmup < 0:
            return f"--warmup must be 0 or more, got {self.warmup}"
        if under_torchrun and self.link_rate != os.environ.get(_RATE_INSIDE):
            return "--link-rate starts its own processes: run it with python, not torchrun"
        return None

    def trial(self, config: Config) -> Trial:
        from trainer.bench.throughput import Trial

        chosen: Mode = "on" if config.pipeline.overlap else "off"
        modes: tuple[Mode, ...] = ("on", "off") if self.compare_overlap else (chosen,)
        return Trial(modes, self.steps, self.warmup)


def main() -> None:
    under_torchrun = "RANK" in os.environ
    try:
        config, options = _parse(sys.argv[1:])
        world = mesh_of(config).world
        validate(config, int(os.environ["WORLD_SIZE"]) if under_torchrun else world)
        problem = options.problem(under_torchrun)
        if problem is not None:
            raise ConfigError(problem)
    except ConfigError as error:
        refuse(error, "throughput")
    if under_torchrun:
        run_guarded(lambda stop: _rank(config, options, stop), "throughput")
    try:
        sys.exit(_start(world, options))
    except LinkError as error:
        print(f"throughput: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _parse(arguments: list[str]) -> tuple[Config, Options]:
    parser = config_parser("throughput", __doc__ or "", EXAMPLES)
    add = parser.add_argument
    add("--steps", type=int, default=5, help="Steps to measure, of each mode.")
    add("--warmup", type=int, default=2, help="Steps of each mode before those.")
    add("--compare-overlap", action="store_true", help="Alternate steps with overlap on and off.")
    add("--link-rate", type=str, default=None, help="Limit the loopback, as in 1gbit; needs root.")
    add("--save-costs", type=Path, default=None, help="Write costs for simulate.py --costs.")
    add("--save-timeline", type=Path, default=None, help="Write a step for simulate.py --measured.")
    add("--json", action="store_true", help="Print one JSON object instead of a table.")
    config, given = parse(parser, arguments)
    return config, Options(**{name: given[name] for name in Options.__dataclass_fields__})


def _start(world: int, options: Options) -> int:
    """Run this command again under torchrun, on a limited link if asked to; its exit code."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--local-addr", "127.0.0.1", "--nproc-per-node", str(world), *sys.argv]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    signal.signal(signal.SIGTERM, _as_exit)
    if options.link_rate is None:
        return _run(command, environment)
    environment |= {"GLOO_SOCKET_IFNAME": "lo", _RATE_INSIDE: options.link_rate}
    with limited_link(options.link_rate) as inside:
        return _run([*inside, *command], environment)


def _run(command: list[str], environment: dict[str, str]) -> int:
    child = subprocess.Popen(command, env=environment)
    try:
        return child.wait()
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()


def _as_exit(number: int, _: FrameType | None) -> NoReturn:
    """A signal as an exception, so that all that was begun is ended."""
    sys.exit(128 + number)


def _rank(config: Config, options: Options, stop: StopRequest) -> None:
    from parallel.ranks.process import Process, join, leave
    from trainer.bench.throughput import measure
    from trainer.bench.throughput_report import as_json, show

    process = Process.from_environment()
    device = process.device(config.run.device)
    join(process, device, timedelta(seconds=config.run.timeout), "env://")
    measured = measure(config, process, options.trial(config), stop)
    if options.save_costs or options.save_timeline:
        _save_costs(config, process, options)
    leave()
    if measured is None:
        return
    if options.json:
        print(json.dumps(as_json(config, measured, options.link_rate), indent=2))
    else:
        show(config, measured, options.link_rate)


def _save_costs(config: Config, process: Process, options: Options) -> None:
    """Time the run's own stages, and write what was asked for; rank 0 writes."""
    from parallel.study.costs import write_costs
    from parallel.study.timeline_file import write_timeline
    from trainer.bench.measured_costs import measure_costs

    found = measure_costs(config, process, options.steps, options.warmup)
    if found is None:
        return
    if options.save_costs:
        write_costs(found.costs, options.save_costs)
    if options.save_timeline:
        write_timeline(found.timeline, options.save_timeline)


if __name__ == "__main__":
    main()

"""Plan a run before it is launched: parameters, memory, step time, MFU, GPU-hours, dollars.

Reads the same config that launch/train.py trains from, and starts nothing: no GPU, no process.
docs/planning.md says what every figure is made of, and how far it is from what DeepSeek published.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout  # noqa: F401  first: it says where the imports below come from

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from parallel.files.outputs import require_outputs, write_file
from trainer.config.derived import mesh_of
from trainer.config.parse import config_parser, parse, to_yaml
from trainer.config.validate import validate
from trainer.errors import ConfigError
from trainer.run.exit import reported

# All else is imported by the functions that need it, so that wrong arguments need not wait for it.
if TYPE_CHECKING:
    from jsonargparse import Namespace

    from trainer.config.schema import Config
    from trainer.plan.sweep import Choice, Variant

SEARCH_SECONDS = 60
EXAMPLES = """\
examples:
  python launch/plan.py --config configs/deepseek_v3_2048.yaml
  python launch/plan.py --config configs/cluster_64gpu.yaml --cluster.gpu b200 --json
  python launch/plan.py --config configs/deepseek_v3_2048.yaml \\
      --sweep pipeline.schedule=dualpipe,dualpipev,zbv,1f1b mesh.expert=32,64
  python launch/plan.py --config configs/cluster_64gpu.yaml --plan.costs costs.yaml
  python launch/plan.py --config configs/deepseek_v3_2048.yaml --remedies
  python launch/plan.py --config configs/deepseek_v3_2048.yaml --html plan.html
  python launch/plan.py --config configs/deepseek_v3_2048.yaml --verify
  python launch/plan.py --config configs/deepseek_v3_2048.yaml --optimise 60 --table found.json

Times come from plan.costs: roofline, deepseek-h800, or a file that throughput.py --save-costs
wrote. --sweep plans every combination of the given values; where the table then has another number
of stages than pipeline.layers_per_stage, layers are spread evenly.
Exit code: 0; 1 where --verify finds ranks that do not match; 2 for a config that cannot run, or
cannot be planned.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code, after one line on what cannot be done."""
    return reported("plan", lambda: _main(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: Sequence[str]) -> int:
    parser = config_parser("plan", __doc__ or "", EXAMPLES)
    add = parser.add_argument
    add("--json", action="store_true", help="Print one JSON object instead of tables.")
    add(
        "--sweep",
        nargs="+",
        metavar="KEY=VALUE,VALUE",
        help="Plan every combination of these values, best first.",
    )
    add(
        "--optimise",
        nargs="?",
        type=int,
        const=SEARCH_SECONDS,
        metavar="SECONDS",
        help="Find the split of layers over stages and the table with which the step is shortest, "
        f"searching for so long ({SEARCH_SECONDS}).",
    )
    add(
        "--table", metavar="FILE", type=Path, help="With --optimise: write the table that is found."
    )
    add(
        "--verify",
        action="store_true",
        help="Run one rank of each role without a GPU, and prove that the calls of all ranks match "
        "and come to an end: see docs/scale.md.",
    )
    add(
        "--remedies",
        action="store_true",
        help="Where it does not fit, also plan it with changes that need less memory.",
    )
    add("--html", metavar="FILE", type=Path, help="Also write it as a page that needs no other.")
    config, given = parse(parser, arguments)
    if given.html:
        require_outputs({"--html": given.html}, ["--html"])
    if given.verify:
        if given.sweep or given.html or given.remedies:
            raise ConfigError("--verify makes no plan: leave out --sweep, --remedies and --html")
        validate(config, mesh_of(config).world)
        from trainer.dry.command import verify_ranks

        return verify_ranks(config, given.json)
    if given.table and given.optimise is None:
        raise ConfigError("--table has no effect without --optimise")
    if given.optimise is not None:
        return _optimise(config, given)
    _run(config, given, to_yaml(parser, given))
    return 0


def _run(config: Config, given: Namespace, whole_config: str) -> None:
    from trainer.plan.as_json import as_json
    from trainer.plan.page.page import DEFAULT_SWEEP, page
    from trainer.plan.plan import make_plan
    from trainer.plan.remedies import remedies
    from trainer.plan.sweep import read_choices
    from trainer.plan.sweep_table import sweep_json, sweep_table
    from trainer.plan.tables import tables

    if given.sweep:
        choices = read_choices(given.sweep)
        variants = _swept(config, choices)
        _print(given.json, sweep_json(choices, variants), [sweep_table(choices, variants)])
    else:
        plan = make_plan(config)
        found = remedies(config, plan.machine) if given.remedies else None
        _print(given.json, as_json(plan, found), tables(plan, found))
    if given.html:
        if given.sweep:
            plan = make_plan(config)
        else:
            choices = read_choices(DEFAULT_SWEEP)
            variants = _swept(config, choices)
        write_file(given.html, page(plan, choices, variants, whole_config))


def _optimise(config: Config, given: Namespace) -> int:
    from parallel.schedule.table_file import write_table
    from trainer.io.search_progress import show_search
    from trainer.plan.optimise import as_json, as_lines, optimise

    if given.table:
        require_outputs({"--table": given.table}, ["--table"])
    validate(config, mesh_of(config).world)
    found = optimise(config, given.optimise, show_search)
    if given.table:
        write_table(found.table, given.table)
    if given.json:
        print(json.dumps(as_json(found), indent=2))
    else:
        print(*as_lines(found), sep="\n")
    return 0


def _swept(config: Config, choices: list[Choice]) -> list[Variant]:
    from trainer.io.count_progress import count_progress
    from trainer.plan.sweep import sweep

    with count_progress("plans") as progress:
        return sweep(config, choices, progress)


def _print(as_json: bool, values: object, tables: Iterable[object]) -> None:
    from rich.console import Console

    if as_json:
        print(json.dumps(values, indent=2))
        return
    # As wide as the tables are, where the output is a file.
    console = Console() if Console().is_terminal else Console(width=120)
    for table in tables:
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())

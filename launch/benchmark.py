"""Measure Tandem beside another way to do the same, in turns, in one run: a training step of
transformers, our own in another precision, compiled or on one process, the same layers as plain
modules, or in the pipelines of torch.distributed.pipelining.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout  # noqa: F401  first: it says where the imports below come from

import json
import sys
from collections.abc import Sequence

from trainer.bench.asked import add_options, read
from trainer.config.parse import config_parser
from trainer.run.exit import guarded
from trainer.run.local_ranks import limit_threads

EXAMPLES = """\
examples:
  python launch/benchmark.py --against transformers --size 1.7M 12M 63M
  python launch/benchmark.py --against transformers --size 12M --memory
  python launch/benchmark.py --config configs/single.yaml --precision.parameters bfloat16 \\
      --against float32 --steps 20
  python launch/benchmark.py --against compiled --size 1.7M 12M
  OMP_NUM_THREADS=1 python launch/benchmark.py --against transformers \\
      --precision.parameters bfloat16 --json
  python launch/benchmark.py --against plain --width 64 128 256
  python launch/benchmark.py --against torch-pipelining --ranks 4 --micro-batches 16 --width 256
  python launch/benchmark.py --against one-process --config configs/cpu_4proc.yaml --runs 4
  python launch/benchmark.py --against generate --size 1.7M 12M --batch 1 8
  python launch/benchmark.py --against needed-bytes

Both sides start from the same weights and read the same random tokens, in micro-batches of the same
size, at a constant learning rate. The command fails where their losses differ.
transformers' side is its model in the type of precision.parameters, torch's clipping and fused
AdamW. It trains neither MTP modules nor the router bias, nor does it add a balance loss here: all
three are off on both sides. On a CPU without instructions for bfloat16, Tandem multiplies in
float32 and rounds, while products of transformers take a hundred times as long.
compiled: our own step with run.compile; the first step compiles, and is not among those that count.
--memory compares twice: with all kept, and with what the keys of recompute say, or whole layers,
computed again, beside transformers' gradient checkpointing.
plain: eight layers without experts through the tape and the executor, beside the same layers as
modules under ordinary autograd; forward and backward of 16 micro-batches, no optimizer.
torch-pipelining: the same eight layers in a pipeline of --ranks processes here, run by our executor
and by torch's schedules, which take the plain modules; times until the last rank is done.
one-process: the config's processes on this machine beside one process with a thread for each core;
whole runs of --steps steps take turns.
generate: greedy texts of random prompts from one exported checkpoint, beside transformers'
generate; a step makes a batch of texts, which must be the same.
needed-bytes: what the tape holds of an MoE layer between forward and backward, for three settings
of recompute, beside what the backward has to read, at DeepSeek-V3's size; eight processes.
docs/benchmarks.md says more.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code, after one line on what cannot be done."""
    return guarded("benchmark", lambda: _main(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: Sequence[str]) -> None:
    parser = config_parser("benchmark", __doc__ or "", EXAMPLES)
    add_options(parser)
    asked = read(parser, arguments)
    limit_threads()
    from trainer.bench.measure import measure  # imports torch

    found = measure(asked)
    if asked.json:
        print(json.dumps(found.json, indent=2))
    else:
        found.show()


if __name__ == "__main__":
    sys.exit(main())

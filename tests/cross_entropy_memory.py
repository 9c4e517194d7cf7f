"""The loss of one micro-batch at DeepSeek-V3's vocabulary, forward and backward, for measuring its
memory: in chunks, as training takes it, or with all logits at once.

    python tests/peak_memory.py python tests/cross_entropy_memory.py chunks
    python tests/peak_memory.py python tests/cross_entropy_memory.py at-once
    python tests/peak_memory.py python tests/cross_entropy_memory.py weights

`weights` only makes what both have beside the logits: the head, its gradient, and the input.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import nn

from parallel.ops.cross_entropy import SOFTMAX, cross_entropy
from parallel.reduce.gradients import make_gradients
from parallel.tape.weight_gradients import WeightGradients

VOCABULARY, WIDTH, TOKENS = 129_280, 256, 2048


def main(way: str) -> None:
    torch.set_num_threads(1)
    head = nn.Parameter(torch.full((VOCABULARY, WIDTH), 0.01).bfloat16())
    make_gradients({"head": head}, {"head": (0,)}, {}, 0)
    x_TD = torch.randn(TOKENS, WIDTH).bfloat16().requires_grad_()
    target_T = torch.arange(TOKENS)
    if way == "chunks":
        deferred = WeightGradients()
        cross_entropy(x_TD, head, target_T, deferred, SOFTMAX).backward()
        deferred.drain()
    elif way == "at-once":
        logits_TV = (x_TD.float() @ head.float().t()).bfloat16()
        nn.functional.cross_entropy(logits_TV.float(), target_T, reduction="sum").backward()


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("chunks", "at-once", "weights"):
        sys.exit(__doc__)
    main(sys.argv[1])

"""What CUDA reads from the environment when it starts, and what a run needs to be there.

launch/submit/environment.sh sets the same for all ranks of a cluster.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

CUDA_ENVIRONMENT = {"CUDA_DEVICE_MAX_CONNECTIONS": "32", "CUDA_MODULE_LOADING": "EAGER"}

_HARMFUL = {
    # Megatron-LM PR 6429: overlap gains 3.7 % with 1, 7.8 % with 32.
    ("CUDA_DEVICE_MAX_CONNECTIONS", "1"): "lets collectives block the computation that hides them",
    # pytorch issue 50925, nccl issue 783.
    ("CUDA_MODULE_LOADING", "LAZY"): "may wait for a receive whose sender waits for this rank",
}


def prepare_cuda_environment() -> None:
    """Set what is not set. To be called before CUDA is asked for anything: it reads this once."""
    for name, value in CUDA_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def cuda_environment_advice(environment: Mapping[str, str]) -> list[str]:
    """A line for each variable whose value throttles a run, or may stop it."""
    return [
        f"{name}={value} {harm}: set it to {CUDA_ENVIRONMENT[name]}, or leave it unset"
        for (name, value), harm in _HARMFUL.items()
        if environment.get(name, "").upper() == value
    ]

"""Devices that only pretend: memory is planned on one."""

from __future__ import annotations

import torch


def pretends(device: torch.device) -> bool:
    """Whether what is on the device has sizes and types, and no numbers."""
    return device.type not in ("cpu", "cuda")

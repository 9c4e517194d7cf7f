"""Kernels in Triton for GPUs, each of which has a plain counterpart (docs/kernels.md)."""

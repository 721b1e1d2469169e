"""Arithmetic without denormals, which are slow on a CPU; for the calling thread and for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALLEST = 5e-324


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Take them for zero; afterwards the thread computes as before, for it may not be ours."""
    before = SMALLEST * 1.0 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)

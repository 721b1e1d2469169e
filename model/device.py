"""Which device and which precision the engine works in, and why."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A device, a precision, and the reason for both in words."""

    device: torch.device
    precision: Precision
    reason: str


def choose(device: str = "auto", precision: str = "auto") -> Choice:
    """Device and precision from what is there.

    Parameters
    ----------
    device
        "auto" (CUDA where there is any), "cpu", "cuda" or "cuda:N".
    precision
        "auto" (float32 on a CPU, bfloat16 on a GPU that computes in it), "float32" or "bfloat16".

    Raises
    ------
    ValueError
        If the device is not there, or cannot compute in that precision at a sensible speed.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision {precision!r}; choose auto, float32 or bfloat16")
    chosen, why = _device(device)
    if chosen.type == "cpu":
        if precision == "bfloat16":
            if not cpu_has_bfloat16():
                raise ValueError("bfloat16 needs a CPU with AMX or avx512_bf16, and this one has neither; use float32")
            return Choice(chosen, "bfloat16", f"{why}; bfloat16 as asked for")
        return Choice(chosen, "float32", f"{why}; float32, the reference precision")
    native = torch.cuda.get_device_capability(chosen) >= (8, 0)
    if precision == "float32" or (precision == "auto" and not native):
        return Choice(chosen, "float32", f"{why}; float32{'' if native else ', it has no bfloat16 units'}")
    if not native:
        raise ValueError(f"{torch.cuda.get_device_name(chosen)} has no bfloat16 units; use float32")
    return Choice(chosen, "bfloat16", f"{why}; bfloat16, its fast precision")


def sensible_threads() -> int:
    """Threads for one engine on a CPU: all cores this process may use but one, at least one.

    Threads of one product wait for each other, so one that has to share its core with another program holds up all of
    them: on two cores beside one other busy process, one thread did 268 windows a second where two did 48.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    return max(1, cores - 1)


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16 products; without them it is many times slower than float32."""
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def _device(name: str) -> tuple[torch.device, str]:
    if name == "cpu":
        return torch.device("cpu"), "CPU as asked for"
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu"), "no CUDA device here"
        return torch.device("cuda:0"), torch.cuda.get_device_name(0)
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r}; choose auto, cpu, cuda or cuda:N") from error
    if chosen.type != "cuda":
        raise ValueError(f"device {name!r}; choose auto, cpu, cuda or cuda:N")
    index = chosen.index or 0
    if index >= torch.cuda.device_count():
        raise ValueError(f"device {name!r}, but this machine has {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", index), f"{torch.cuda.get_device_name(index)} as asked for"

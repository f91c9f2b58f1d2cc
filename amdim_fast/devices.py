"""Finding a device by name, what it is, and what it supports."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

KINDS = ("cpu", "cuda")


def default_device() -> str:
    """The name of the device to use if none is named: cuda, where torch can compute on it, or cpu.

    A GPU that is found and cannot be used is named in a warning. Under torchrun, each process tries
    the one that it will use.
    """
    if not torch.cuda.is_available():
        return "cpu"
    index = int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()
    try:
        torch.ones(1, device=f"cuda:{index}").add_(1)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        warnings.warn(
            f"cuda:{index} is here but cannot be used ({reason}); using cpu", stacklevel=2
        )
        return "cpu"
    return "cuda"


def find_device(name: str | None = None) -> torch.device:
    """The torch device of this name, if it can be used here; None is ``default_device``.

    Raises:
        ValueError: it is neither cpu nor cuda, or this machine does not have it.
    """
    name = default_device() if name is None else name
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in KINDS:
        raise ValueError(
            f"device is {name!r}; it must be cpu or cuda, which the views are built for"
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {name!r}, but torch finds no CUDA device here; use cpu")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.index is not None and device.index >= count:
        raise ValueError(
            f"device is {name!r}; it must be below {device.type}:{count}, the number that torch"
            " finds here"
        )
    return device


def describe_device(device: torch.device) -> str:
    """A device and its name, as in "cuda:0 (NVIDIA H200)"."""
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return f"{device} ({device_name(device)})"


def device_name(device: str | torch.device) -> str:
    """The GPU's name, or the CPU's and the number of torch's threads."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    model = next(models, platform.processor() or platform.machine())
    return f"{model}, {torch.get_num_threads()} threads"


def execution_line(facts: Mapping[str, str]) -> str:
    """What a command says first: its device, precision, backends and way of execution."""
    return "; ".join(f"{name} {value}" for name, value in facts.items())


def computes_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than float32 ones: on CUDA, AVX-512 BF16 and AMX."""
    if device.type != "cpu":
        return device.type == "cuda"
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)

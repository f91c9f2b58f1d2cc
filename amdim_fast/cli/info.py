"""``amdim-fast info``: the installation, its devices, and the contents of a model's file."""

from __future__ import annotations

import argparse
import os
import platform
from importlib import metadata
from typing import Any

import torch

from amdim_fast.cli.options import DefaultsFormatter
from amdim_fast.model.encoder import Encoder
from amdim_fast.model.pretrained import read_pretrained
from amdim_fast.nce.backend import resolve_backend
from amdim_fast.nce.products import product_library
from amdim_fast.version import __version__
from amdim_fast.views import compiled

PACKAGES = ("triton", "numpy", "safetensors", "torchvision", "pillow", "matplotlib")

Facts = dict[str, str]


def add_command(commands: Any) -> None:
    """Add the parser."""
    command = commands.add_parser(
        "info",
        help="describe the installation, or a checkpoint",
        description="Print versions, devices, compiled libraries and backends and, for a checkpoint"
        " or an export, its architecture, parameters, recipe and step.",
        formatter_class=DefaultsFormatter,
    )
    command.set_defaults(run=_run)
    command.add_argument(
        "model", metavar="MODEL", nargs="?", help="checkpoint file or folder of an export"
    )


def _run(parsed: argparse.Namespace) -> int:
    facts = {} if parsed.model is None else describe_model(parsed.model)
    tables = [facts, describe_installation()]
    width = max(len(name) for table in tables for name in table)
    lines = [[f"{name:<{width}}  {value}" for name, value in table.items()] for table in tables]
    print("\n\n".join("\n".join(part) for part in lines if part))
    return 0


def describe_installation() -> Facts:
    """Versions, devices, compiled libraries and backends that run on this machine."""
    facts = {
        "amdim_fast": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
    facts |= {package: _version(package) for package in PACKAGES}
    facts["CUDA of torch"] = torch.version.cuda or "none"
    facts["CPU"] = f"{torch.get_num_threads()} threads of torch, {os.cpu_count()} cores"
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    for index in devices:
        found = torch.cuda.get_device_properties(index)
        facts[f"cuda:{index}"] = (
            f"{found.name}, compute capability {found.major}.{found.minor},"
            f" {found.total_memory / 2**30:.0f} GiB"
        )
    if not devices:
        facts["CUDA devices"] = "none"
    facts["views, CPU library"] = "built" if compiled.load_cpu() else "not built"
    facts["views, CUDA library"] = _cuda_library()
    library = product_library(torch.device("cpu"), torch.float32)
    facts["loss, torch backend"] = f"runs; float32 products on CPUs by {library}"
    facts["loss, triton backend"] = _triton(torch.device("cuda" if devices else "cpu"))
    return facts


def describe_model(path: str | os.PathLike[str]) -> Facts:
    """Architecture, parameters, test-time input and origin of a checkpoint or an export.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or not of an AMDIM.
        ValueError: this version does not know the policy of its recipe.
    """
    model, preprocessing, provenance = read_pretrained(path)
    encoder = model.encoder
    own = "none" if model.evaluator is None else f"{model.evaluator.n_classes} classes"
    resize = f"resized to {preprocessing.resize or preprocessing.size} px"
    facts = {
        "file": str(path),
        "input": f"{encoder.in_channels} x {encoder.size} x {encoder.size} px, images {resize}",
        "mean, std": f"{_rounded(preprocessing.mean)}, {_rounded(preprocessing.std)}",
        "architecture": f"ndf {encoder.ndf}, n_rkhs {encoder.n_rkhs}, depth {encoder.depth},"
        f" use_bn {encoder.use_bn}"
        if isinstance(encoder, Encoder)
        else f"{encoder.backbone}, n_rkhs {encoder.n_rkhs}",
        "parameters": f"{sum(p.numel() for p in encoder.parameters()):,} in the encoder,"
        f" {sum(p.numel() for p in model.parameters()):,} in all",
        "probes": own,
    }
    origin = {"recipe": None, "step": None} | provenance
    return facts | {
        name: "not known" if value is None else str(value) for name, value in origin.items()
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cuda_library() -> str:
    if torch.version.cuda is None:
        return "not loaded, torch is built without CUDA"
    return "built" if compiled.load_cuda() else "not built"


def _triton(device: torch.device) -> str:
    try:
        resolve_backend("triton", torch.float32, device)
    except ValueError as error:
        return str(error).removeprefix("backend is 'triton', but ").rpartition("; use")[0]
    except ModuleNotFoundError as error:
        return f"{error.name} is missing; pip install . installs it"
    return f"runs on {device}"


def _rounded(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"

"""Export of a checkpoint's encoder as a program that runs without this package."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amdim_fast.checkpoints.export_config import CONFIG
from amdim_fast.files import check_new_folder, folder_written_whole
from amdim_fast.model.backbone import AnyEncoder
from amdim_fast.model.encoder import EncoderOutput
from amdim_fast.model.export import described, read_for_export
from amdim_fast.model.replay import eval_mode
from amdim_fast.optional import require

FORMAT, FORMAT_VERSION = "amdim_fast program", 1
PROGRAMS = {"torch-export": "encoder.pt2", "onnx": "encoder.onnx"}
_MOST_IN_ONE_FILE = 2 * 10**9  # bytes of weights; an ONNX file may have 2 GiB


class _Program(nn.Module):
    """What is exported: plain arguments and results, without types of this package."""

    def __init__(self, encoder: AnyEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.encoder(images))


def export_program(
    checkpoint: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    format: str = "torch-export",
    policy: str | None = None,
) -> dict[str, Any]:
    """Write the encoder of a checkpoint as a program for batches of any size.

    The program takes ``images``, float32 [B, in_channels, size, size], normalized, and returns r1
    [B, D, 1, 1], r5 [B, D, 5, 5] and r7 [B, D, 7, 7] as the encoder does in evaluation mode. The
    folder holds it and ``config.json``: names and shapes, test-time preprocessing, versions, recipe
    and step.

    Args:
        checkpoint: a file of this package, of the public code or of lightning-bolts.
        out_dir: folder to create; it takes its name once all of it is on disk.
        format: "torch-export", ``encoder.pt2`` for ``torch.export.load``; or "onnx",
            ``encoder.onnx``, beside it ``encoder.onnx.data`` if the weights are larger than 2 GB,
            which needs onnxscript.
        policy: as in ``AMDIM.from_pretrained``.

    Returns:
        The contents of ``config.json``.

    Raises:
        FileExistsError: out_dir exists. FileNotFoundError: the checkpoint, or the folder that
            out_dir goes into, does not exist. CheckpointError: the checkpoint cannot be read.
        ValueError: there is no such format or policy, the policy is for another size, or a
            backbone cannot be exported. ModuleNotFoundError: onnxscript is not installed.
    """
    if format not in PROGRAMS:
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(PROGRAMS)}")
    target = Path(out_dir)
    check_new_folder(target)
    if format == "onnx":
        require("onnxscript", "writing ONNX", "onnx")
    model, preprocessing, provenance = read_for_export(checkpoint, policy)
    encoder = model.encoder
    # torch warns of weights in channels_last when it writes them
    program = _Program(encoder).to(memory_format=torch.contiguous_format)
    example = torch.zeros(2, encoder.in_channels, encoder.size, encoder.size)
    with eval_mode(program):
        maps = zip(EncoderOutput._fields, program(example), strict=True)
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "program": PROGRAMS[format],
        "inputs": {"images": ["batch", *example.shape[1:]]},
        "outputs": {name: ["batch", *found.shape[1:]] for name, found in maps},
        "dtype": "float32",
        "preprocessing": asdict(preprocessing),
        "provenance": described(checkpoint, provenance),
    }
    write = _write_onnx if format == "onnx" else _write_torch_export
    with folder_written_whole(target) as folder:
        try:
            with eval_mode(program):
                write(folder / PROGRAMS[format], program, example)
        except RuntimeError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{checkpoint} has an encoder that cannot be exported as {format} ({reason})"
            ) from error
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return config


def _write_torch_export(path: Path, program: _Program, example: Tensor) -> None:
    batch = torch.export.Dim("batch")
    exported = torch.export.export(program, (example,), dynamic_shapes={"images": {0: batch}})
    torch.export.save(exported, path)


def _write_onnx(path: Path, program: _Program, example: Tensor) -> None:
    weights = sum(value.nbytes for value in program.state_dict().values())
    torch.onnx.export(
        program,
        (example,),
        path,
        input_names=["images"],
        output_names=list(EncoderOutput._fields),
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        external_data=weights > _MOST_IN_ONE_FILE,
        dynamo=True,
        verbose=False,
    )

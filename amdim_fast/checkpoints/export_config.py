"""The JSON configuration of an export: written, and checked entry by entry when read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amdim_fast.checkpoints.formats import CheckpointError
from amdim_fast.files import read_whole
from amdim_fast.views.preprocessing import Preprocessing

FORMAT = "amdim_fast encoder"
FORMAT_VERSION = 1
CONFIG = "config.json"
WEIGHTS = "encoder.safetensors"
ARCHITECTURE = {
    "size": int,
    "ndf": int,
    "n_rkhs": int,
    "depth": int,
    "use_bn": bool,
    "in_channels": int,
}
BACKBONE_ARCHITECTURE = {"backbone": str, "size": int, "n_rkhs": int, "in_channels": int}
_LARGEST_RESIZE = 1 << 16  # pixels
# Arguments of AMDIM for the head that makes components and for their posterior.
MIXTURE = ("components", "mixture_hidden", "tau", "alpha", "tclip")


@dataclass(frozen=True)
class ExportConfig:
    """The contents of ``config.json``.

    Attributes:
        architecture: arguments of ``Encoder``, or of ``BackboneEncoder`` with the network's name.
        preprocessing: from uint8 images to the encoder's input.
        weights: name of the safetensors file, in the same folder.
        sha256: of that file, hexadecimal.
        provenance: versions, source file, recipe and step; None for what is not known.
        mixture: the arguments of ``AMDIM`` for its components; None without components.
    """

    architecture: dict[str, Any]
    preprocessing: Preprocessing
    weights: str
    sha256: str
    provenance: dict[str, Any]
    mixture: dict[str, Any] | None = None

    def to_json(self) -> str:
        """The text of ``config.json``."""
        head = {"format": FORMAT, "format_version": FORMAT_VERSION}
        return json.dumps(head | asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> ExportConfig:
        """Read ``config.json``.

        Raises:
            FileNotFoundError: there is none. CheckpointError: it is not the configuration of
                an export, or names a file outside its folder.
        """
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist; an export is a folder with {CONFIG} and its weights"
            )
        try:
            content = json.loads(read_whole(path))
        except (ValueError, RecursionError):
            raise CheckpointError(
                f"{path} is damaged or not JSON; export the encoder again"
            ) from None
        try:
            return _parse(content)
        except KeyError as error:
            checkpoints = sorted(path.parent.glob("*.pt"))
            if error.args[0] == "format" and checkpoints:
                raise CheckpointError(
                    f"{path.parent} is not an export; give one of its checkpoint files, such as"
                    f" {checkpoints[0]}"
                ) from None
            raise CheckpointError(f"{path} has no entry {error.args[0]!r}; export again") from None
        except (TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"{path} is not the configuration of an export: {error}"
            ) from None


def _parse(content: Any) -> ExportConfig:
    content = _typed("the file", content, dict)
    if (content["format"], content["format_version"]) != (FORMAT, FORMAT_VERSION):
        hint = "; give the checkpoint of this program, or its export as safetensors"
        raise ValueError(
            f"its format is {content['format']!r} {content['format_version']!r}; it must be"
            f" {FORMAT!r} {FORMAT_VERSION}{hint if 'program' in content else ''}"
        )
    given = _typed("architecture", content["architecture"], dict)
    kinds = BACKBONE_ARCHITECTURE if "backbone" in given else ARCHITECTURE
    architecture = {name: _typed(name, given[name], kind) for name, kind in kinds.items()}
    given = _typed("preprocessing", content["preprocessing"], dict)
    resize = given["resize"]
    preprocessing = Preprocessing(
        _typed("size", given["size"], int),
        _numbers("mean", given["mean"], architecture["in_channels"]),
        _numbers("std", given["std"], architecture["in_channels"]),
        None if resize is None else _typed("resize", resize, int),
    )
    if resize is not None and resize > _LARGEST_RESIZE:
        raise ValueError(f"resize is {resize}; it must be at most {_LARGEST_RESIZE}")
    if preprocessing.size != architecture["size"]:
        raise ValueError(
            f"preprocessing makes {preprocessing.size} pixels and the encoder takes"
            f" {architecture['size']}"
        )
    weights = _typed("weights", content["weights"], str)
    if Path(weights).name != weights or weights in ("", ".", "..") or "\\" in weights:
        raise ValueError(
            f"weights is {weights!r}; it must be the name of a file in the same folder"
        )
    return ExportConfig(
        architecture,
        preprocessing,
        weights,
        _typed("sha256", content["sha256"], str),
        _typed("provenance", content["provenance"], dict),
        _mixture(content.get("mixture")),
    )


def _mixture(given: Any) -> dict[str, Any] | None:
    if given is None:
        return None
    found = {name: _typed("mixture", given, dict)[name] for name in MIXTURE}
    for name in ("components", "mixture_hidden"):
        _typed(name, found[name], int)
    _typed("tau", found["tau"], float)
    for name in ("alpha", "tclip"):
        if found[name] is not None:
            _typed(name, found[name], float)
    return found


def _typed(name: str, value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{name} is {type(value).__name__}; it must be {kind.__name__}")
    return value


def _numbers(name: str, values: Any, channels: int) -> tuple[float, ...]:
    if len(_typed(name, values, list)) != channels:
        raise ValueError(
            f"{name} has {len(values)} values; it must have {channels}, one for each channel"
        )
    if not all(type(value) in (int, float) for value in values):
        raise TypeError(f"{name} is {values}; it must be a number for each channel")
    return tuple(float(value) for value in values)

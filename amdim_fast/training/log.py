"""The folder of a run: configuration, log, summary, curves and TensorBoard's events."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from amdim_fast.files import read_whole, written_whole
from amdim_fast.optional import may_fail, new_figure, png_of
from amdim_fast.training.tensorboard import TensorBoardServer

CONFIG, LOG, LEFT_OUT, SUMMARY, CURVES, EVENTS = (
    "config.json",
    "log.jsonl",
    "left_out.json",
    "summary.json",
    "curves.png",
    "tensorboard",
)
# Of a run with frequent checkpoints; a picture takes a second or so.
CURVES_SECONDS = 30.0
_PANELS = {
    ("contrastive losses", "NCE loss, nats"): {
        "loss_1t5": "1 -> 5",
        "loss_1t7": "1 -> 7",
        "loss_5t5": "5 -> 5",
    },
    ("regularizer", "penalty on raw scores"): {"lgt_reg": "raw scores"},
    ("online probes", "training accuracy"): {
        "accuracy_linear": "linear",
        "accuracy_mlp": "MLP",
    },
}


class RunLog:
    """Writes what a run reports into its folder.

    Files: ``config.json``, ``log.jsonl`` (one record per line), ``summary.json``, ``curves.png`` if
    matplotlib is installed, and ``tensorboard/`` on request.

    Args:
        folder: folder of the run.
        config: plain values for ``config.json``; a resumed run keeps the file that it has.
        resume_step: continue the log of an existing folder after this step; drop later records.
        tensorboard: also write events for TensorBoard.
        tensorboard_port: serve them there until the log is closed.

    Raises:
        OSError: a file cannot be written. ValueError: the log of a resumed run is damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        config: Mapping[str, Any],
        *,
        resume_step: int | None = None,
        tensorboard: bool = False,
        tensorboard_port: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.records: list[dict[str, Any]] = []
        if resume_step is None:
            self._write_json(CONFIG, config)
        else:
            self.records = _records_until(self.folder / LOG, resume_step)
            with written_whole(self.folder / LOG) as file:
                file.write("".join(json.dumps(r) + "\n" for r in self.records).encode())
        self._log = open(self.folder / LOG, "a", encoding="utf-8")  # noqa: SIM115
        self._events: Any = None
        self._server: TensorBoardServer | None = None
        self._last_drawn = time.monotonic()
        if tensorboard or tensorboard_port is not None:
            from torch.utils.tensorboard import SummaryWriter

            purge = None if resume_step is None else resume_step + 1
            self._events = SummaryWriter(str(self.folder / EVENTS), purge_step=purge)
        if tensorboard_port is not None:
            self._server = TensorBoardServer(self.folder / EVENTS, tensorboard_port)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # of a record that ``write`` has raised for
            self._log.close()
        if self._events is not None:
            self._events.close()
        if self._server is not None:
            self._server.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record to ``log.jsonl``; the operating system has it when this returns.

        Raises:
            OSError: it cannot be written.
        """
        self.records.append(dict(record))
        try:
            self._log.write(json.dumps(record) + "\n")
            self._log.flush()
        except OSError as error:
            raise type(error)(
                f"{self.folder / LOG} cannot be written ({error.strerror}); make room and go on"
                f" with --resume {self.folder}"
            ) from error
        if self._events is not None:
            for name, value in record.items():
                if name != "step" and isinstance(value, int | float):
                    self._events.add_scalar(name, value, record["step"])
            self._events.flush()

    def change_config(self, **changed: Any) -> None:
        """Replace entries of ``config.json``."""
        self._write_json(CONFIG, read_config(self.folder) | changed)

    def write_left_out(self, left_out: Mapping[str, Mapping[str, str]]) -> None:
        """Write ``left_out.json``: split -> file -> why it is, or must be, left out."""
        self._write_json(LEFT_OUT, left_out)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json`` and the curves."""
        self._write_json(SUMMARY, summary)
        self.draw_curves()

    def update_curves(self) -> None:
        """Draw the curves, ``CURVES_SECONDS`` after that was done last, or the log was opened."""
        if time.monotonic() - self._last_drawn >= CURVES_SECONDS:
            self.draw_curves()
            self._last_drawn = time.monotonic()

    def draw_curves(self) -> None:
        """Losses, regularizer and online accuracies against steps, into ``curves.png``.

        A picture that fails is said on stderr; the figures are in the log.
        """
        panels = {
            labels: {k: v for k, v in curves.items() if any(k in r for r in self.records)}
            for labels, curves in _PANELS.items()
        }
        panels = {labels: curves for labels, curves in panels.items() if curves}
        if not panels:
            return
        try:
            # Margins that are looked for take as long as the rest.
            figure = new_figure(5 * len(panels), 4, "drawing the curves", layout=None)
        except ModuleNotFoundError:
            return
        path = self.folder / CURVES
        with may_fail(path, "the run goes on"), written_whole(path) as file:
            left = 0.7 / (5 * len(panels))
            margins = {"left": left, "right": 1 - left / 4, "bottom": 0.13, "top": 0.92}
            axes = figure.subplots(1, len(panels), squeeze=False, gridspec_kw=margins)[0]
            for axis, ((title, ylabel), curves) in zip(axes, panels.items(), strict=True):
                for key, label in curves.items():
                    points = [(r["step"], r[key]) for r in self.records if r.get(key) is not None]
                    axis.plot(*zip(*points, strict=True), label=label) if points else None
                axis.set(xlabel="step", ylabel=ylabel, title=title)
                axis.legend()
            file.write(png_of(figure))

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        with written_whole(self.folder / name) as file:
            file.write((json.dumps(content, indent=2) + "\n").encode())


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a run.

    Raises:
        FileNotFoundError: it is missing. ValueError: it is damaged.
    """
    path = folder / CONFIG
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist, so {folder} is not the folder of a run")
    damaged = ValueError(f"{path} is damaged; it must be the JSON that the run wrote")
    try:
        config = json.loads(read_whole(path))
    except (ValueError, RecursionError):
        raise damaged from None
    if not isinstance(config, dict) or not isinstance(config.get("data_dir"), str):
        raise damaged
    return config


def read_left_out(folder: Path) -> dict[str, dict[str, str]] | None:
    """``left_out.json`` of a run, None if there is none.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / LEFT_OUT
    if not path.exists():
        return None
    try:
        content = json.loads(read_whole(path))
        return {
            split: {str(name): str(sentence) for name, sentence in content[split].items()}
            for split in ("train", "test")
        }
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise ValueError(
            f"{path} is damaged; remove it, and resume with --skip-bad if the run left out files"
        ) from None


def _records_until(path: Path, step: int) -> list[dict[str, Any]]:
    """Records of the steps up to ``step``; a last line that a kill cut short is dropped.

    Raises:
        ValueError: another line is not a record.
    """
    records: list[dict[str, Any]] = []
    lines = read_whole(path).splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            record = None
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            raise ValueError(
                f"line {number} of {path} is not a record with a step; remove it to resume"
            )
        if record["step"] > step:
            break
        records.append(record)
    return records

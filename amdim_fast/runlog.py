"""The folder of a run: configuration, log, summary and curves."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

CURVES = {
    "loss_1t5": "1 -> 5",
    "loss_1t7": "1 -> 7",
    "loss_5t5": "5 -> 5",
}


class RunLog:
    """Creates ``folder`` and keeps what a run says of itself there.

    Files: ``config.json``, ``log.jsonl`` (one line a record), ``summary.json``, ``curves.png``.

    Args:
        folder: of the run; it must not exist.
        config: plain values.

    Raises:
        FileExistsError: the folder exists; it is left alone. OSError: it cannot be created.
    """

    def __init__(self, folder: str | os.PathLike[str], config: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True)
        except FileExistsError:
            raise FileExistsError(
                f"run folder {self.folder} exists already; choose another --name or move it away"
            ) from None
        except OSError as error:
            raise type(error)(
                f"run folder {self.folder} cannot be created ({error.strerror}); choose another"
                " --runs-dir"
            ) from None
        self.records: list[dict[str, Any]] = []
        self._write_json("config.json", config)
        self._log = open(self.folder / "log.jsonl", "w", encoding="utf-8")  # noqa: SIM115

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._log.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record to ``log.jsonl``; it is on disk when this returns."""
        self.records.append(dict(record))
        self._log.write(json.dumps(record) + "\n")
        self._log.flush()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json`` and, where matplotlib is installed, ``curves.png``."""
        self._write_json("summary.json", summary)
        self.draw_curves()

    def draw_curves(self) -> None:
        """Losses and regulariser against steps; nothing where matplotlib is not installed."""
        try:
            import matplotlib
        except ModuleNotFoundError:
            return
        matplotlib.use("Agg")
        from matplotlib import pyplot

        steps = [record["step"] for record in self.records]
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
        for key, label in CURVES.items():
            left.plot(steps, [record[key] for record in self.records], label=label)
        left.set(xlabel="step", ylabel="NCE loss, nats", title="contrastive losses")
        left.legend()
        right.plot(steps, [record["lgt_reg"] for record in self.records], color="tab:red")
        right.set(xlabel="step", ylabel="penalty on raw scores", title="regulariser")
        figure.savefig(self.folder / "curves.png", dpi=110)
        pyplot.close(figure)

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        temporary = self.folder / f".{name}.tmp"
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, self.folder / name)

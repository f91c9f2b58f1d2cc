"""Rows of measurements, and what benches share to make them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from amdim_fast.bench.measure import (
    Stopwatch,
    quantiles,
    stopwatch,
    time_interleaved,
    versions,
)
from amdim_fast.devices import device_name
from amdim_fast.training.recipes import Recipe
from benchmarks import sources

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# What measuring writes; it does not make a commit dirty.
OUTPUTS = ("benchmarks/results", "benchmarks/plots")
# Share of the CPUs; with one of two cores taken, OpenMP's barriers slow small blocks tenfold.
BUSY = 0.03
# Clocks of a row. Wall: until all is done, what the host takes included, by the clock of the system
# or, where work ends on a GPU, by events. Device: what a GPU takes if no work waits for the host.
WALL, DEVICE = CLOCKS = ("wall", "device")


@dataclass(frozen=True)
class Condition:
    """What is measured; a newer row of the same condition replaces an older one in the report."""

    name: str
    case: str
    provider: str
    mode: str
    shapes: Mapping[str, Any]
    dtype: str


class OtherWork:
    """Share of the machine's CPUs that other processes took since it was made; Linux only."""

    def __init__(self) -> None:
        self._start = self._seconds()

    def share(self) -> float:
        """0 if they were idle, 1 if they had all of the machine."""
        wall, busy, own = (b - a for a, b in zip(self._start, self._seconds(), strict=True))
        return max(0.0, busy - own) / (wall * (os.cpu_count() or 1))

    def note(self) -> str:
        """A note for the rows if others took too much, else empty."""
        share = self.share()
        return f"BUSY MACHINE: other work took {share:.0%} of the CPUs" if share > BUSY else ""

    @staticmethod
    def _seconds() -> tuple[float, float, float]:
        user, nice, system, _idle, _iowait, *interrupts = (
            int(ticks) for ticks in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        )
        busy = (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), busy, sum(os.times()[:4])  # ended children included


def end_compile_workers() -> None:
    """End the processes that torch.compile has started; they would be other work."""
    compiler = sys.modules.get("torch._inductor.async_compile")
    if compiler is not None:
        compiler.shutdown_compile_workers()


@contextlib.contextmanager
def taken_cores(count: int) -> Iterator[None]:
    """As many processes that do nothing else than take a core each."""
    with contextlib.ExitStack() as exits:
        for _ in range(count):
            process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            exits.callback(process.wait)
            exits.callback(process.kill)
        yield


def timed(
    calls: Mapping[str, Callable[[], object]],
    device: str = "cpu",
    *,
    warm_ups: int,
    measure: Stopwatch | None = None,
    **options: Any,
) -> tuple[dict[str, list[float]], str]:
    """Milliseconds by ``time_interleaved`` with its options, and the note of ``OtherWork``."""
    for _ in range(warm_ups):
        for call in calls.values():
            call()
    end_compile_workers()
    other_work = OtherWork()
    measure = measure or stopwatch(device)
    return time_interleaved(calls, warm_ups=0, measure=measure, **options), other_work.note()


def pretrain(*options: str, device: str = "cpu") -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Log records and summary of ``amdim-fast pretrain --recipe digits``, a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "amdim_fast", "pretrain", "--recipe=digits", "--name=run"]
        command += [f"--runs-dir={folder}", f"--device={device}", *options]
        finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if finished.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{finished.stderr}")
        run = Path(folder) / "run"
        records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        return records, json.loads((run / "summary.json").read_text())


def sizes(recipe: Recipe) -> dict[str, int]:
    """The sizes of a recipe that its rows name."""
    widths = {"D": recipe.n_rkhs, "ndf": recipe.ndf, "depth": recipe.depth}
    return {"B": recipe.batch_size, **widths}


def commit(root: Path = ROOT) -> str:
    """Commit of the working tree, "-dirty" added if files differ from it; "unknown" outside git."""
    excluded = [f":!{path}" for path in OUTPUTS]
    head = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--", ".", *excluded)
    if head is None or changes is None:
        return "unknown"
    return head + ("-dirty" if changes else "")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        finished = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return finished.stdout.strip() if finished.returncode == 0 else None


def is_timed(unit: str) -> bool:
    """Whether values of the unit come from a clock: times and rates."""
    return unit == "ms" or unit.endswith("/s")


def make_row(
    condition: Condition,
    metric: str,
    unit: str,
    samples: Sequence[float],
    *,
    device: str,
    note: str = "",
    measured: bool = True,
    clock: str = WALL,
    beside: Iterable[str] = (),
) -> dict[str, Any]:
    """One row; a calculated value (``measured=False``) has n = 0.

    ``clock``, one of CLOCKS, is that of times and rates, and empty in all other rows; ``beside``
    names the providers that were measured in turn with it, itself or not. ValueError for any other
    clock.
    """
    if clock not in CLOCKS:
        raise ValueError(f"clock is {clock!r}; it must be one of {', '.join(CLOCKS)}")
    row: dict[str, Any] = {**asdict(condition), "metric": metric, "unit": unit}
    row.update(zip(("q20", "q50", "q80"), quantiles(samples), strict=True))
    row["n"] = len(samples) if measured else 0
    row["clock"] = clock if is_timed(unit) else ""
    row["beside"] = sorted({*beside} - {condition.provider})
    row.update(note=note, device=device, versions=versions(), commit=commit())
    row["source"] = sources.digest(condition.name)
    row["time"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return row


def append_row(row: Mapping[str, Any], path: Path) -> None:
    """Append ``row`` to a .jsonl file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def record(
    out: Path,
    condition: Condition,
    metric: str,
    unit: str,
    samples: Sequence[float],
    device: str = "cpu",
    **more: Any,
) -> None:
    """Append a row to the file ``out`` and print it; ``device`` is cpu or cuda.

    ValueError for a time or rate of a GPU without ``clock``: there the two differ.
    """
    if device == "cuda" and is_timed(unit) and "clock" not in more:
        raise ValueError(f"clock is missing for {metric}; on a GPU it must be named")
    row = make_row(condition, metric, unit, samples, device=device_name(device), **more)
    if device == "cpu":
        row["instructions"] = torch.backends.cpu.get_cpu_capability()
    append_row(row, out)
    what = f"{condition.case} {condition.provider} {condition.mode} {metric}"
    print(f"  {what}: {row['q50']:,.4g} {unit}, n = {row['n']} {row['note']}", flush=True)


def parser(name: str, doc: str | None, *devices: str) -> argparse.ArgumentParser:
    """The options of a bench: ``--out``, and ``--device`` if it measures on several."""
    made = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    made.add_argument("--out", type=Path, default=RESULTS / f"{name}.jsonl", help="file of rows")
    if devices:
        made.add_argument("--device", choices=devices, default=devices[0])
    return made

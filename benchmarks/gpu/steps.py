"""Whole training steps on a GPU, ours and the original's, each in a process of its own.

A wave is one provider on every recipe. Its processes compile together, but have the device one at a
time; once all are ready they are measured in turn, and nothing else runs.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Lock
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch._dynamo.callback import on_compile_end, on_compile_start
from torch.utils.flop_counter import FlopCounterMode

from amdim_fast.data.loader import Batch
from amdim_fast.training.randomness import algorithms
from amdim_fast.training.recipes import RECIPES, Recipe
from amdim_fast.training.step import Training, build_model
from amdim_fast.views.params import POLICIES
from benchmarks import harness
from benchmarks.gpu.grid import product_flops
from benchmarks.nce_providers import FORWARD_BACKWARD
from benchmarks.reference_loss import use_reference

NAME = "train_step"
OURS, GRAPH, COMPILED = "amdim_fast", "amdim_fast, CUDA graph", "amdim_fast, compiled"
ORIGINAL, ORIGINAL_COMPILED = "original algorithm", "original algorithm, compiled"
# Options of the recipe; what a time limit cuts off is the last.
PROVIDERS: dict[str, dict[str, Any]] = {
    OURS: {"cuda_graph": False},
    GRAPH: {"cuda_graph": True},
    ORIGINAL: {"cuda_graph": False},
    COMPILED: {"compile": True, "cuda_graph": False},
    ORIGINAL_COMPILED: {"compile": True, "cuda_graph": False},
}
CLASSES = 10
STEPS, REPEATS, ROUND_SECONDS = 4, 10, 2.0  # steps of a sample: the host runs ahead, as in training
QUICK, QUICK_SECONDS = (GRAPH, ORIGINAL), 80.0  # what is trained with, and its peer
SECONDS, WAVE_SECONDS, MEASURE_SECONDS = 175.0, 70.0, 6.0  # of all, a wave, a process when ready


class Case(NamedTuple):
    """A recipe on synthetic uint8 images, ``side`` px wide and high, that are on the device."""

    recipe: Recipe
    side: int
    images: int  # of its training set
    device: str = "cuda"

    @property
    def key(self) -> str:
        """Its name in the rows."""
        return f"{self.device}-{self.recipe.name}"


# The most asked for first.
CASES = {
    name: Case(replace(RECIPES[name], precision="bfloat16"), side, images)
    for name, side, images in (
        ("imagenet128", 160, 1_281_167),
        ("cifar10", 32, 50_000),
        ("stl10", 96, 105_000),
        ("digits", 32, 4_000),
    )
}


@cache
def step_flops(recipe: Recipe) -> float:
    """Floating-point operations of the products of a step, forward + backward, nothing run.

    Those of the encoder as the original computes them, on two views, and those of the loss.
    """
    size, images = POLICIES[recipe.policy].size, recipe.batch_size
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        encoder = build_model(recipe, None).encoder
        encoder.backend = "torch"
        features = encoder(torch.empty(images, 3, size, size))
        torch.cat([part.flatten() for part in features]).sum().backward()
    loss = product_flops(images, recipe.n_rkhs, FORWARD_BACKWARD)
    return 2 * counter.get_total_flops() + loss


def recipe_seconds(case: Case, rate: float) -> float:
    """Of the whole recipe at ``rate`` images/s."""
    return case.recipe.total_steps(case.images) * case.recipe.batch_size / rate


def make_step(case: Case, provider: str) -> Callable[[], object]:
    """The callable of STEPS steps, their views included."""
    recipe = replace(case.recipe, **PROVIDERS[provider])
    original = provider in (ORIGINAL, ORIGINAL_COMPILED)
    with torch.device(case.device):
        model = build_model(recipe, CLASSES)
        shape = (recipe.batch_size, case.side, case.side, 3)
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
        labels = torch.arange(recipe.batch_size) % CLASSES
    if original:
        model.encoder.backend = "torch"
    training = Training(model, recipe, case.images, seed=0)
    if original:
        use_reference(training, compiled=recipe.compile)
        training._encoder = partial(model.encoder)  # type: ignore[assignment]  # view by view
    batch = Batch(torch.arange(recipe.batch_size), images, labels)

    def steps() -> None:
        for _ in range(STEPS):
            training.update(training.views(batch), labels)

    return steps


def measure(case: Case, provider: str, steps: Callable[[], object], out: Path) -> None:
    """Rows of time, rate and, on a GPU, the process's peak memory."""
    samples, note = harness.timed(
        {"": steps}, case.device, warm_ups=1, repeats=REPEATS, seconds=ROUND_SECONDS
    )
    times = [sample / STEPS for sample in samples[""]]
    sizes, dtype = harness.sizes(case.recipe), case.recipe.precision
    condition = harness.Condition(NAME, case.key, provider, "step", sizes, dtype)
    rates = [1e3 * case.recipe.batch_size / milliseconds for milliseconds in times]
    more = {"note": note, "clock": harness.WALL}
    harness.record(out, condition, "rate", "images/s", rates, case.device, **more)
    harness.record(out, condition, "time", "ms", times, case.device, **more)
    if case.device == "cuda":
        peak = float(torch.cuda.max_memory_allocated())
        harness.record(out, condition, "peak_memory", "bytes", [peak], case.device)


def _member(case: Case, provider: str, out: Path, turn: Lock, starter: Connection) -> None:
    """A process of a wave: it uses the device while it has the turn, and compiles without it."""

    def leave(_: object) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        turn.release()

    def take(_: object) -> None:
        turn.acquire()

    on_compile_start(leave)
    on_compile_end(take)
    with algorithms(deterministic=False):
        with turn:
            steps = make_step(case, provider)
            steps()
            torch.cuda.empty_cache()
        harness.end_compile_workers()
        starter.send("ready")
        starter.recv()
        measure(case, provider, steps, out)


def run_wave(cases: Sequence[Case], provider: str, out: Path, seconds: float) -> list[str]:
    """Rows of one provider on every case; what has none, and why."""
    ends = time.monotonic() + seconds
    context = multiprocessing.get_context("spawn")
    turn, members, left_out = context.Lock(), [], []
    for case in cases:
        starter, theirs = context.Pipe()
        arguments = (case, provider, out, turn, theirs)
        process = context.Process(target=_member, args=arguments, daemon=True)
        process.start()
        theirs.close()
        members.append((case, process, starter))
    begins = ends - MEASURE_SECONDS * len(cases)
    late = [p for _, p, starter in members if not starter.poll(max(0.0, begins - time.monotonic()))]
    for process in late:
        process.kill()
    for case, process, starter in members:
        with suppress(EOFError, OSError):  # it has ended
            starter.recv()
            starter.send("begin")
        process.join(max(0.0, ends - time.monotonic()))
        if process.exitcode != 0:
            is_late = process in late or process.is_alive()
            why = "out of time" if is_late else f"exit status {process.exitcode}"
            left_out.append(f"{case.key} {provider}: {why}")
            process.kill()
    return left_out


def measure_all(out: Path, *, quick: bool = False) -> int:
    """Every wave that the time allows, or those of QUICK; 1 if anything has no rows."""
    ends = time.monotonic() + (QUICK_SECONDS if quick else SECONDS)
    left_out = []
    for provider in QUICK if quick else PROVIDERS:
        print(provider, flush=True)
        seconds = min(WAVE_SECONDS, ends - time.monotonic())
        left_out += run_wave(list(CASES.values()), provider, out, seconds)
    print("\n".join(f"not measured: {what}" for what in left_out))
    return int(bool(left_out))

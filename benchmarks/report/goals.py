"""Every goal, what the rows say of it, and whether that meets it."""

from __future__ import annotations

from itertools import pairwise
from operator import ge, gt, le, lt
from statistics import mean, stdev

from benchmarks.bench_large_batch import CACHED, DIGITS, LOSS, WHOLE
from benchmarks.report.gpu_goals import ON_GPU
from benchmarks.report.readers import Goal, Reader, Value, median, ratio
from benchmarks.report.rows import MISSING, Row, Rows, mark, quantity, table
from benchmarks.report.steps import STEP_GOALS, VIEWS_GOALS

SMALL, LARGE = "cpu-b480-d1024-float32", "cpu-b4096-d256-float32"
TAKEN = f"{SMALL}-taken1"
# By maker and instruction set: products are of other libraries.
CPUS = ("AMD AVX2", "AMD AVX512", "Intel AVX512")
OURS, REFERENCE_LOSS, PILLOW = "amdim_fast", "reference loss", "torchvision on Pillow"
STORED = "packed store"


def judge(goal: Goal, rows: Rows) -> list[str]:
    """The measured value, marked where a row is of older code, and the verdict."""
    value = goal.value(rows)
    if value is None:
        return [MISSING, ""]
    met = goal.compare(value.number, goal.limit)
    beyond = met and goal.aim is not None and goal.compare(value.number, goal.aim)
    verdict = "met, aim too" if beyond else "met" if met else "not met"
    return [value.text + mark(*value.rows), verdict]


def goal_table(rows: Rows, block: str) -> str:
    """The goals of a block."""
    body = [[label, goal.text, *judge(goal, rows)] for label, goal in GOALS[block].items()]
    return table(["", "goal", "measured", ""], body)


def nce(metric: str, provider: str, mode: str = "forward_backward", case: str = SMALL) -> Reader:
    """Times the reference's time or memory at B = 480."""
    return ratio("nce", "reference", provider, case=case, mode=mode, metric=metric)


def views_ratio(case: str) -> Reader:
    """Views per second, as a multiple of torchvision's on Pillow."""
    return ratio("augment", OURS, PILLOW, case=case, metric="rate")


def digits_peaks(rows: Rows) -> list[Row]:
    """Peak memory from the whole batch to the smallest micro-batch; empty while one is missing."""
    fields = {"case": DIGITS, "metric": "peak_memory"}
    found = [rows.find("large_batch", provider=p, **fields) for p in (WHOLE, *CACHED)]
    return [row for row in found if row] if all(found) else []


def falling_peaks(rows: Rows) -> Value | None:
    """All of them; the number is the largest quotient of one and the one before."""
    peaks = digits_peaks(rows)
    worst = max((b["q50"] / a["q50"] for a, b in pairwise(peaks)), default=0.0)
    text = ", ".join(quantity(row["q50"], "bytes") for row in peaks)
    return Value(worst, text, peaks) if peaks else None


def least_peak(rows: Rows) -> Value | None:
    """That of the best micro-batch."""
    least = min(digits_peaks(rows)[1:], key=lambda row: float(row["q50"]), default=None)
    return Value(least["q50"], quantity(least["q50"], "bytes"), [least]) if least else None


def quality_samples(rows: Rows, metric: str = "linear_probe") -> dict[str, dict[int, list[float]]]:
    """Provider -> step -> values, one per seed."""
    found: dict[str, dict[int, list[float]]] = {OURS: {}, REFERENCE_LOSS: {}}
    for row in rows.named("quality", metric=metric):
        steps = found.setdefault(row["provider"].partition(", seed")[0], {})
        steps.setdefault(row["shapes"]["step"], []).append(float(row["q50"]))
    return found


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation; the latter is 0 of one value."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def quality_difference(rows: Rows) -> Value | None:
    """Points between the means of both losses; the most that exceeds both standard deviations."""
    accuracies = quality_samples(rows)
    ours, other = ({s: spread(v) for s, v in accuracies[p].items()} for p in (OURS, REFERENCE_LOSS))
    if not ours or not other:
        return None
    gaps = {step: abs(ours[step][0] - other[step][0]) for step in ours}
    excess = max(gaps[step] - max(ours[step][1], other[step][1]) for step in ours)
    return Value(excess, f"{max(gaps.values()):.2f} points", rows.named("quality"))


def quality_speed(rows: Rows) -> Value | None:
    """How many times as long the reference loss takes to the last step."""
    seconds = quality_samples(rows, "training_time")
    if not seconds[OURS] or not seconds[REFERENCE_LOSS]:
        return None
    ours, other = (mean(seconds[p][max(seconds[p])]) for p in (OURS, REFERENCE_LOSS))
    return Value(other / ours, f"{other / ours:.2f}x less", rows.named("quality"))


IDLE_LOSS = Goal("1.7x or more, aim 2.65x", nce("time", "torch_objective"), ge, 1.7, 2.65)
TAKEN_LOSS = Goal("1.4x or more", nce("time", "torch_objective", case=TAKEN), ge, 1.4)
# Block of the documents -> label -> goal.
GOALS = {
    "nce_goals": {
        **{f"forward + backward at B = 480, {cpu}": IDLE_LOSS.on(cpu) for cpu in CPUS},
        **{f"one of two cores taken, {cpu}": TAKEN_LOSS.on(cpu) for cpu in CPUS},
        "forward under no_grad at B = 480": Goal(
            "3x or more", nce("time", "torch", "forward"), ge, 3
        ),
        "extra peak memory at B = 480": Goal(
            "10x less or better", nce("extra_peak_memory", "torch_objective"), ge, 10
        ),
        "extra peak memory at B = 4096": Goal(
            "under 1 GB",
            median("nce", case=LARGE, provider="torch_objective", metric="extra_peak_memory"),
            lt,
            1e9,
        ),
        **ON_GPU,
    },
    "augment_goals": {
        f"256² to 128², one core, against {PILLOW}": Goal(
            "3x or more", views_ratio("cpu-256px-imagenet128"), ge, 3
        ),
        f"96² to 64², one core, against {PILLOW}": Goal(
            "3x or more", views_ratio("cpu-96px-stl10"), ge, 3
        ),
        **VIEWS_GOALS,
    },
    "data": {
        name: Goal("10,000 or more", median("data", provider=name), ge, 10_000)
        for name in (STORED, f"{STORED}, into one buffer", f"{STORED}, through the loader")
    },
    "step_goals": {
        "digits, data and views": Goal(
            "under 15 %",
            median("train_step", case="cpu-digits", provider=OURS, metric="data_and_views"),
            lt,
            15,
        ),
    },
    "step_gpu_goals": STEP_GOALS,
    "mixture_goals": {
        "training step with K = 4": Goal(
            "at most 1.5 plain steps", ratio("mixture", "K = 4", "plain"), le, 1.5
        ),
        "entropy of the mean posterior": Goal(
            "above 50 % of log K", median("emergence", metric="usage entropy / log K"), gt, 50
        ),
    },
    "quality_goals": {
        "largest difference of the means": Goal(
            "within the standard deviation of either", quality_difference, le, 0
        ),
        "time to the last step": Goal("less than with the reference loss", quality_speed, gt, 1),
    },
    "large_goals": {
        "six costs at B = 8,192, beyond inputs and gradients": Goal(
            "under 1 GB", median("large_batch", case=LOSS, metric="extra_peak_memory"), lt, 1e9
        ),
        "digits at a batch of 4,000, whole process": Goal("under 2 GB", least_peak, lt, 2e9),
        "its peak memory as the micro-batches shrink": Goal(
            "falls each time", falling_peaks, lt, 1
        ),
    },
}

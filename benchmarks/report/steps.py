"""Training steps on one H100 or H200, in bfloat16: their table, and their goals."""

from __future__ import annotations

from operator import ge, le

from benchmarks.bench_augment import KERNEL
from benchmarks.gpu import grid
from benchmarks.gpu.steps import (
    CASES,
    COMPILED,
    GRAPH,
    NAME,
    OURS,
    PROVIDERS,
    recipe_seconds,
    step_flops,
)
from benchmarks.report.readers import Goal, Reader, Value, median
from benchmarks.report.rows import MISSING, NO_ROWS, Row, Rows, cell, mark, quantity, table

METRICS = ("rate", "time", "peak_memory")


def percent_of_peak(rows: Rows, recipe: str, rate: Row) -> Value | None:
    """Of the measured product peak of the same card, counting the products of a step."""
    peak = rows.find("nce", case=grid.peak_key("bfloat16"), metric="rate")
    if peak is None or peak["device"] != rate["device"]:
        return None
    flops = step_flops(CASES[recipe].recipe) * rate["q50"] / CASES[recipe].recipe.batch_size
    percent = 100 * flops / 1e12 / peak["q50"]
    return Value(percent, f"{percent:.0f} %", [rate, peak])


def steps_table(rows: Rows) -> str:
    """Every measured provider of every recipe; how long a recipe takes is calculated."""
    body, used = [], []
    for name, case in CASES.items():
        for provider in PROVIDERS:
            fields = {"case": case.key, "provider": provider}
            rate, *rest = (rows.find(NAME, metric=metric, **fields) for metric in METRICS)
            if rate is None:
                continue
            share = percent_of_peak(rows, name, rate)
            whole = quantity(1e3 * recipe_seconds(case, rate["q50"]), "ms")
            body.append(
                [
                    f"{name}, {provider}",
                    cell(rate),
                    share.text + mark(*share.rows) if share else MISSING,
                    *map(cell, rest),
                    whole + mark(rate),
                ]
            )
            used += [row for row in (rate, *rest) if row]
    header = ["", "rate", "of the product peak", "time", "peak memory", "the recipe, calculated"]
    return table(header, body, used) if body else NO_ROWS


def fastest(rows: Rows, recipe: str) -> Row | None:
    """The row of the highest rate among our providers."""
    found = [
        rows.find(NAME, case=CASES[recipe].key, provider=provider, metric="rate")
        for provider in (OURS, GRAPH, COMPILED)
    ]
    return max(filter(None, found), key=lambda row: float(row["q50"]), default=None)


def _named(row: Row) -> Value:
    """With how it was run."""
    how = row["provider"].removeprefix(OURS).lstrip(", ") or "eager"
    return Value(row["q50"], f"{quantity(row['q50'], row['unit'])}, {how}", [row])


def whole_run(rows: Rows) -> Value | None:
    """The shorter of the runs of digits."""
    runs = rows.named(NAME, case="cuda-digits-run", metric="training_time")
    return _named(min(runs, key=lambda row: float(row["q50"]))) if runs else None


def of_fastest(recipe: str, metric: str) -> Reader:
    """Rate, percent of the peak or peak memory of our fastest provider, which is named."""

    def value(rows: Rows) -> Value | None:
        rate = fastest(rows, recipe)
        if rate is None:
            return None
        if metric == "share":
            return percent_of_peak(rows, recipe, rate)
        row = rows.find(NAME, case=rate["case"], provider=rate["provider"], metric=metric)
        return _named(row) if row else None

    return value


def _step(recipe: str, text: str, *limits: float) -> Goal:
    return Goal(text, of_fastest(recipe, "rate"), ge, *limits)


STEP_GOALS = {
    "GPU, imagenet128, batch 480": _step(
        "imagenet128", "3,400 images/s or more, aim 4,000", 3400, 4000
    ),
    "GPU, imagenet128, batch 480, of the product peak": Goal(
        "60 % or more, aim 70 %", of_fastest("imagenet128", "share"), ge, 60, 70
    ),
    "GPU, cifar10, batch 200": _step("cifar10", "9,000 images/s or more, aim 12,000", 9000, 12000),
    "GPU, stl10, batch 200": _step("stl10", "3,700 images/s or more, aim 4,500", 3700, 4500),
    "GPU, imagenet128, batch 480, peak memory": Goal(
        "22 GB or less, aim 18 GB", of_fastest("imagenet128", "peak_memory"), le, 22e9, 18e9
    ),
    "GPU, digits, 600 steps": Goal("10 s or less, aim 6 s", whole_run, le, 10e3, 6e3),
}


def views(case: str, provider: str) -> Reader:
    """Milliseconds of two views of a batch on a GPU."""
    return median("augment", case=case, provider=provider, metric="time")


VIEWS_GOALS = {
    "GPU, 256 of 256² to 128², kernel": Goal(
        "120 us or less, aim 60 us", views("cuda-256px-imagenet128", KERNEL), le, 0.12, 0.06
    ),
    "GPU, 256 of 256² to 128², drawing included": Goal(
        "300 us or less, aim 150 us", views("cuda-256px-imagenet128", OURS), le, 0.3, 0.15
    ),
    "GPU, 256 of 32², drawing included": Goal(
        "100 us or less", views("cuda-32px-cifar", OURS), le, 0.1
    ),
}

"""Probe accuracy of both losses against steps, over seeds."""

from __future__ import annotations

from collections import defaultdict
from statistics import mean, stdev

from benchmarks.rows import MISSING, NO_ROWS, Rows, conditions, table, verdict

OURS, REFERENCE, PIXELS, RANDOM = "amdim_fast", "reference loss", "raw pixels", "random weights"


def quality_samples(rows: Rows, metric: str = "linear_probe") -> dict[str, dict[int, list[float]]]:
    """Provider -> step -> values, one a seed."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows.named("quality"):
        if row["metric"] == metric:
            provider = row["provider"].partition(", seed")[0]
            found[provider][row["shapes"]["step"]].append(float(row["q50"]))
    return found


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation; the latter is 0 of one value."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def quality_table(rows: Rows) -> str:
    """Mean and standard deviation at each step, and the seconds of training until there."""
    accuracies = quality_samples(rows)
    seconds = quality_samples(rows, "training_time")
    if not accuracies[OURS] or not accuracies[REFERENCE]:
        return NO_ROWS
    body = []
    for label, step in ((PIXELS, 0), (RANDOM, 0)):
        body.append([label, _percent(accuracies[label][step]), "", "", ""])
    for step, values in sorted(accuracies[OURS].items()):
        other = accuracies[REFERENCE][step]
        times = [seconds[provider][step] for provider in (OURS, REFERENCE)]
        body.append(
            [f"step {step}", _percent(values), _percent(other), *(_seconds(t) for t in times)]
        )
    header = ["", f"probe, {OURS}", f"probe, {REFERENCE}", f"time, {OURS}", f"time, {REFERENCE}"]
    seeds = len(accuracies[OURS][max(accuracies[OURS])])
    said = f"Mean and standard deviation, {seeds} seeds, one thread a process. "
    shown = [row for row in rows.named("quality") if row["shapes"]["step"]]
    return table(header, body) + "\n\n" + said + conditions(shown)


def quality_goals(rows: Rows) -> str:
    """Whether the curves coincide within the seeds' noise, and which loss is there first."""
    accuracies = quality_samples(rows)
    seconds = quality_samples(rows, "training_time")
    body = [
        ["largest difference of the means", "within the standard deviation of either"],
        ["time to the last step", "less than with the reference loss"],
    ]
    if not accuracies[OURS] or not accuracies[REFERENCE]:
        return table(["", "goal", "measured", ""], [[*line, MISSING, ""] for line in body])
    pairs = [
        (spread(values), spread(accuracies[REFERENCE][step]))
        for step, values in sorted(accuracies[OURS].items())
    ]
    differences = [abs(ours[0] - other[0]) for ours, other in pairs]
    within = all(
        gap <= max(ours[1], other[1]) for gap, (ours, other) in zip(differences, pairs, strict=True)
    )
    last = max(accuracies[OURS])
    ours, other = (mean(seconds[provider][last]) for provider in (OURS, REFERENCE))
    body[0] += [f"{max(differences):.2f} points", verdict(within)]
    body[1] += [f"{other / ours:.2f}x less", verdict(ours < other)]
    return table(["", "goal", "measured", ""], body)


def _percent(values: list[float]) -> str:
    if not values:
        return MISSING
    average, deviation = spread(values)
    return f"{average:.1f} ± {deviation:.1f} %" if len(values) > 1 else f"{average:.1f} %"


def _seconds(values: list[float]) -> str:
    return f"{mean(values) / 1e3:.0f} s" if values else MISSING

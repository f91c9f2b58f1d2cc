"""The goals of the loss on one H100 or H200, in bfloat16 unless float32 is named."""

from __future__ import annotations

from operator import ge, le

from benchmarks.gpu import grid
from benchmarks.nce_providers import COMPILED
from benchmarks.report.readers import Goal, Value, median, ratio
from benchmarks.report.rows import Rows


def times_faster(images: int, width: int, text: str, *limits: float, than: str) -> Goal:
    """How many times as long another provider takes on a GPU; limits are the goal's and the aim."""
    fields = {"case": grid.grid_key(images, width, "bfloat16"), "mode": "forward_backward"}
    return Goal(text, ratio("nce", than, grid.OURS, metric="time", **fields), ge, *limits)


def memory_share(images: int, width: int, ours: str, text: str, *limits: float, of: str) -> Goal:
    """Extra peak memory on a GPU, as a multiple of another provider's."""
    fields = {"case": grid.grid_key(images, width, "bfloat16"), "metric": "extra_peak_memory"}
    value = ratio("nce", ours, of, mode="forward_backward", **fields)
    return Goal(text, value, le, *limits)


def peak_share(images: int, ours: str, text: str, *limits: float) -> Goal:
    """Percent of the measured product peak, counting three products, at D = 2048 in bfloat16."""

    def value(rows: Rows) -> Value | None:
        fields = {"case": grid.grid_key(images, 2048, "bfloat16"), "mode": "forward_backward"}
        peak = rows.find("nce", case=grid.peak_key("bfloat16"), metric="rate")
        time = rows.find("nce", provider=ours, metric="time", **fields)
        if peak is None or time is None or peak["device"] != time["device"]:
            return None
        rate = grid.product_flops(images, 2048, "forward_backward") / time["q50"] / 1e9
        percent = 100 * rate / peak["q50"]
        return Value(percent, f"{percent:.0f} %", [time, peak])

    return Goal(text, value, ge, *limits)


def largest_seconds(rows: Rows) -> Value | None:
    """Of B = 65,536; of a smaller batch, where that is the largest that fits, times B squared."""
    row = rows.find("nce", case=grid.LARGEST_CASE, provider=grid.OURS, metric="time")
    if row is None:
        return None
    images = row["shapes"]["B"]
    seconds = row["q50"] / 1e3 * (grid.LARGEST / images) ** 2
    said = "" if images == grid.LARGEST else f", calculated from B = {images:,}"
    return Value(seconds, f"{seconds:.3g} s{said}", [row])


ON_GPU = {
    "GPU, B = 256, D = 1024, against torch.compile": times_faster(
        *(256, 1024, "2x or more, aim 4x", 2, 4), than=COMPILED
    ),
    "GPU, B = 1024, D = 2048, against torch.compile": times_faster(
        *(1024, 2048, "1.35x or more, aim 1.5x", 1.35, 1.5), than=COMPILED
    ),
    "GPU, B = 1024, D = 2048, against the original": times_faster(
        *(1024, 2048, "4.8x or more, aim 5.3x", 4.8, 5.3), than="reference"
    ),
    "GPU, B = 1024, D = 2048, of the product peak": peak_share(
        1024, grid.OURS, "75 % or more, aim 82 %", 75, 82
    ),
    "GPU, B = 4096, D = 2048, of the product peak": peak_share(
        4096, grid.OURS, "70 % or more, aim 78 %", 70, 78
    ),
    "GPU, B = 4096, extra memory, of the original's": memory_share(
        4096, 2048, grid.OURS, "0.06x or less", 0.06, of="reference"
    ),
    "GPU, B = 4096, least memory, of the product peak": peak_share(
        4096, "triton_least", "55 % or more, aim 62 %", 55, 62
    ),
    "GPU, B = 4096, least memory, of the original's": memory_share(
        4096, 2048, "triton_least", "0.01x or less", 0.01, of="reference"
    ),
    "GPU, B = 65,536, D = 2048": Goal("25 s or less, aim 18 s", largest_seconds, le, 25, 18),
    "GPU, B = 256, extra memory, of torch.compile's": memory_share(
        256, 1024, grid.OURS, "1.5x or less, aim 1x", 1.5, 1, of=COMPILED
    ),
    "GPU, float32, B = 1024, D = 2048, against the original": Goal(
        "2.5x or more, aim 4x",
        ratio(
            *("nce", "reference", grid.LIMBS),
            case=grid.grid_key(1024, 2048, "float32"),
            mode="forward_backward",
            metric="time",
        ),
        *(ge, 2.5, 4),
    ),
    "GPU, B = 256, D = 1024, host": Goal(
        "0.6 ms or less, aim 0.3 ms",
        median(
            "nce",
            case=grid.grid_key(256, 1024, "bfloat16"),
            provider=grid.OURS,
            metric="host_time",
        ),
        *(le, 0.6, 0.3),
    ),
}

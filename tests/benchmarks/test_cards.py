"""Tables of one card: what its rows say, and nothing where nobody has run it."""

import pytest

from benchmarks import harness
from benchmarks.gpu import grid, steps
from benchmarks.nce_providers import FORWARD_BACKWARD
from benchmarks.report import BLOCKS, cards
from benchmarks.report.rows import MISSING, NO_ROWS, Rows

H100, H200 = "NVIDIA H100 80GB HBM3", "NVIDIA H200"
CASE = grid.grid_key(1024, 2048, "bfloat16")


def row(provider, metric, value, unit="ms", *, case=CASE, device=H100, name="nce", **more):
    shapes = {"B": 1024, "D": 2048}
    condition = harness.Condition(name, case, provider, FORWARD_BACKWARD, shapes, "bfloat16")
    return harness.make_row(condition, metric, unit, [value], device=device, **more)


def speeds(device=H100, factor=1.0):
    for provider, time in (("reference", 20.0), (grid.OURS, 5.0)):
        yield row(provider, "time", time * factor, device=device)
        yield row(provider, "extra_peak_memory", time * factor * 1e8, "bytes", device=device)
    yield row(grid.OURS, "device_time", 4.5 * factor, device=device, clock="device")
    yield row(grid.OURS, "launches", 21.0, "", device=device)


def lines(text, label):
    return [line for line in text.splitlines() if line.startswith(f"| {label} |")]


def test_loss_by_batch_size_against_the_original():
    text = cards.loss(Rows(speeds()), "H100")
    assert "|  | B | D | type | wall | device alone | launches | extra memory |" in text
    assert lines(text, "original algorithm") == [
        "| original algorithm | 1024 | 2048 | bfloat16 | 20 ms |  |  | 2 GB |"
    ]
    ours = lines(text, "amdim_fast")
    assert len(ours) == len(grid.GRID)
    said = "| amdim_fast | 1024 | 2048 | bfloat16 | 5 ms (4x) | 4.5 ms | 21 | 500 MB (4x) |"
    assert said in ours
    assert sum(MISSING in line for line in ours) == len(grid.GRID) - 1
    assert f"Host: {MISSING}." in text
    assert f"Largest batch at D = 2048 in bfloat16: {MISSING}." in text


def test_old_rows_are_not_called_wall():
    old = [{k: v for k, v in found.items() if k != "clock"} for found in speeds()]
    text = cards.loss(Rows(old), "H100")
    assert "| type | time | device alone |" in text
    assert "wall" not in text


def test_each_card_has_its_own_rows_whichever_is_newer():
    rows = Rows([*speeds(H200, 2.0), *speeds()])
    assert "| 10 ms (4x) |" in cards.loss(rows, "H200")
    assert "| 5 ms (4x) |" in cards.loss(rows, "H100")
    assert H200 not in cards.loss(rows, "H100")


@pytest.mark.parametrize("block", [name for name in BLOCKS if name.startswith("gpu_loss")])
def test_a_card_that_nobody_has_run_stays_empty(block):
    other = Rows(speeds("NVIDIA A100"))
    assert BLOCKS[block](other) == NO_ROWS


@pytest.mark.parametrize(("with_ours", "shown"), [(True, []), (False, ["9 ms (2.2x)"])])
def test_the_general_loss_stands_in_for_ours(with_ours, shown):
    found = [made for made in speeds() if with_ours or made["provider"] != grid.OURS]
    text = cards.loss(Rows([*found, row("triton", "time", 9.0)]), "H100")
    general = lines(text, "amdim_fast, any upstream gradient")
    assert [line.split(" | ")[4] for line in general] == shown


def test_peak_and_largest_batch_of_the_card():
    largest = [
        row(grid.OURS, "largest_batch", 65536.0, "images", case=grid.LARGEST_CASE),
        row(grid.OURS, "time", 19e3, case=grid.LARGEST_CASE),
        row("product_peak", "rate", 790.0, "TFLOP/s", case=grid.peak_key("bfloat16")),
    ]
    text = cards.loss(Rows([*speeds(), *largest]), "H100")
    assert "65,536 images in 19 s" in text
    assert f"Product peak: 790 TFLOP/s in bfloat16 and {MISSING} in float32." in text


def test_errors_of_values_and_gradients():
    found = [
        row("reference", "gradient_error", 3e-3, ""),
        row(grid.OURS, "value_error", 2e-6, ""),
        row(grid.OURS, "gradient_error", 1.5e-3, ""),
    ]
    text = cards.errors(Rows(found))
    gap = f" | {MISSING}"
    assert lines(text, "amdim_fast") == [f"| amdim_fast | {MISSING} | 2e-06, 0.0015{gap}{gap} |"]
    assert lines(text, "original algorithm") == [
        f"| original algorithm | {MISSING} | 0.003{gap}{gap} |"
    ]
    assert cards.errors(Rows([])) == NO_ROWS


def test_hours_of_a_whole_run():
    """50 epochs of 2,669 steps of 480 images."""
    rate = row(steps.GRAPH, "rate", 2669.0, "images/s", case="cuda-imagenet128", name=steps.NAME)
    text = cards.whole_runs(Rows([rate]))
    hours = 50 * 2669 * 480 / 2669 / 3600
    assert (
        f"| imagenet128, CUDA graph | 1,281,167 | 50 epochs | 2,669 images/s | {hours:.3g} h |"
        in (text)
    )
    assert cards.whole_runs(Rows([])) == NO_ROWS


def test_verdicts_are_those_of_the_newest_card():
    def part(name, note, device):
        made = row(name, "part_time", 61e3, name="gpu", case="cuda-suite", device=device)
        return {**made, "note": note}

    old = part("test", "FAILED: exit status 1", H200)
    rows = Rows([{**old, "time": "2000"}, part("test", "passed", H100)])
    assert "| test | passed | 61 s |" in cards.verdicts(rows)
    assert "FAILED" not in cards.verdicts(rows)
    assert cards.verdicts(Rows([])) == NO_ROWS

"""Plots: drawn from rows alone, and checked against them."""

import pytest

from benchmarks import harness, report
from benchmarks.report.plots import DRAWN, LEAST_POINTS, PLOTS
from benchmarks.report.rows import MISSING, Rows, conditions

BATCH_CURVES, VIEW_BARS, QUALITY_CURVES = (
    DRAWN[name] for name in ("nce_batch_plot", "augment_plot", "quality_plot")
)

SIZES = (64, 128, 256, 480)
MOST_BYTES = 60_000


def made(name, case, provider, mode, metric, unit, value, device="some CPU", **shapes):
    condition = harness.Condition(name, case, provider, mode, shapes, "float32")
    return harness.make_row(condition, metric, unit, [value], device=device)


def batch_rows(sizes=SIZES, **more):
    for images in sizes:
        key = f"cpu-b{images}-d1024-float32"
        for provider in ("reference", "torch_objective", "torch_least", "gemms"):
            for metric, unit in (("time", "ms"), ("extra_peak_memory", "bytes")):
                value = float(images**2)
                shapes = {"B": images, "D": 1024}
                yield made(
                    *("nce", key, provider, "forward_backward", metric, unit, value),
                    **more,
                    **shapes,
                )


def view_rows():
    for case in ("cpu-256px-imagenet128", "cpu-96px-stl10", "cpu-96px-stl10-all-cores"):
        options = {"device": "two cores" if case.endswith("cores") else "one core", "views": 2}
        yield made("augment", case, "amdim_fast", "two_views", "rate", "images/s", 800.0, **options)


def quality_rows(steps=(50, 600)):
    for seed, shift in enumerate((0.0, 1.0, 2.0)):
        name = f"random weights, seed {seed}"
        yield made("quality", "digits-0", name, "train", "linear_probe", "%", 70 + shift, step=0)
        for step in steps:
            for provider in ("amdim_fast", "reference loss"):
                key = ("quality", f"digits-{step}", f"{provider}, seed {seed}", "train")
                yield made(*key, "linear_probe", "%", 90 + shift, step=step)
                yield made(*key, "training_time", "ms", 100.0 * step, step=step)


CASES = [(BATCH_CURVES, batch_rows), (VIEW_BARS, view_rows), (QUALITY_CURVES, quality_rows)]
NAMES = [plot.file for plot, _ in CASES]


@pytest.mark.parametrize(("plot", "make"), CASES, ids=NAMES)
def test_image_is_of_the_rows_and_small(plot, make, tmp_path):
    rows = Rows(make())
    assert plot.block(Rows([])) == f"Plot: {MISSING}."
    assert plot.agrees(Rows([]), tmp_path)
    assert not plot.agrees(rows, tmp_path)
    plot.draw(rows, tmp_path)
    image = (tmp_path / plot.path).read_bytes()
    assert image.startswith(b"\x89PNG")
    assert len(image) < MOST_BYTES
    assert plot.agrees(rows, tmp_path)
    assert not plot.agrees(Rows([]), tmp_path)
    drawn = plot.select(rows)
    for row in drawn:
        changed = [{**r, "q50": r["q50"] + (r is row)} for r in drawn]
        assert not plot.agrees(Rows(changed), tmp_path)
    plot.draw(Rows([]), tmp_path)
    assert not (tmp_path / plot.path).exists()


def painted(plot, rows):
    """Axes after painting."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure()
    FigureCanvasAgg(figure)
    plot.paint(figure, plot.select(Rows(rows)))
    return figure.axes


def test_curves_against_the_batch_have_the_values_of_the_rows():
    time, memory = painted(BATCH_CURVES, batch_rows())
    assert [line.get_xdata().tolist() for line in time.lines] == [list(SIZES)] * 3
    assert time.lines[0].get_ydata() == pytest.approx([size**2 / 1e3 for size in SIZES])
    assert memory.lines[2].get_ydata() == pytest.approx([size**2 / 1e6 for size in SIZES])


def test_curves_against_the_batch_need_four_sizes_of_one_machine():
    few = list(batch_rows(SIZES[1:]))
    assert len(SIZES) == LEAST_POINTS
    assert BATCH_CURVES.select(Rows(few)) == []
    other = [{**row, "time": "2000-01-01"} for row in batch_rows(SIZES[:1], device="another")]
    assert BATCH_CURVES.select(Rows([*few, *other])) == []


def test_bars_of_views_count_both_views_of_an_image():
    first, second = painted(VIEW_BARS, view_rows())
    assert [bar.get_width() for bar in first.patches] == [1600.0]
    assert [bar.get_width() for bar in second.patches] == [1600.0]


def test_quality_curves_are_means_with_their_deviation():
    steps, seconds = painted(QUALITY_CURVES, quality_rows())
    for axis, places in ((steps, [50, 600]), (seconds, [5.0, 60.0])):
        assert len(axis.containers) == 2
        for container in axis.containers:
            line, _caps, (bars,) = container.lines
            assert line.get_xdata().tolist() == places
            assert line.get_ydata().tolist() == [91.0, 91.0]
            assert [end[1] for end in bars.get_segments()[0]] == [90.0, 92.0]
        assert 71.0 in {float(line.get_ydata()[0]) for line in axis.lines}


def test_links_are_relative_to_the_document():
    rows = Rows(quality_rows())
    text = "<!-- report:quality_plot -->\n<!-- /report:quality_plot -->\n"
    for document, link in (
        ("README.md", "benchmarks/plots/quality.png"),
        ("benchmarks/NOTES.md", "plots/quality.png"),
        ("docs/page.md", "../benchmarks/plots/quality.png"),
    ):
        assert f"]({link})" in report.rendered(text, rows, document)


def test_committed_images_are_small_and_known():
    drawn = {plot.file for plot in DRAWN.values()}
    for path in (report.ROOT / PLOTS).glob("*.png"):
        assert path.stat().st_size < 65_000
        assert path.name in {*drawn, "emergence.png"}


def test_conditions_of_many_sizes_are_a_list_a_letter():
    assert "B = 64, 128, 256, 480; D = 1024; float32" in conditions(list(batch_rows()))

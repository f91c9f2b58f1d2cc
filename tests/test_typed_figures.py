"""No measurement is typed by hand into README or docs: each stands in a block made of rows."""

import re

import pytest

from benchmarks.report import MARKED, ROOT

UNITS = r"(?:us|ms|s|[kMGT]B|[kMG]iB|bytes|%|TFLOP/s|images/s|views/s|steps/s)"
FIGURE = re.compile(
    rf"(?<![\w.,/-])~?(?:\d[\d,]*(?:\.\d+)?)(?:x(?![\w.])| ?{UNITS}(?![\w/])| times\b)"
)
# Chosen, not measured: defaults, tolerances; and what others published.
CONSTANTS = {
    "docs/loss.md": {
        "256 MiB",  # the default of memory_budget
    },
}
DOCUMENTS = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


QUOTED = re.compile(r"^.*\[\d\].*$", re.M)  # a line that cites its source


def typed_figures(text):
    return FIGURE.findall(QUOTED.sub("", MARKED.sub("", text)))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_figures_stand_in_blocks_of_rows(document):
    found = set(typed_figures((ROOT / document).read_text(encoding="utf-8")))
    allowed = CONSTANTS.get(document, set())
    assert found - allowed == set(), "make a row and a report block of it, or allow a constant"
    assert allowed - found == set(), "no longer there"


@pytest.mark.parametrize(
    "figure",
    ["2.8x", "3x", "782 ms", "1.5 s", "20s", "3.4 GB", "12 MiB", "96.7 %", "97%", "1,558 images/s"],
)
def test_a_typed_figure_is_found(figure):
    sentence = f"It takes {figure}, and\n"
    assert typed_figures(sentence) == [figure]
    assert typed_figures(f"({figure})") == [figure]
    block = f"<!-- report:data -->\n{sentence}<!-- /report:data -->\n"
    assert typed_figures(block) == []
    assert typed_figures(block + sentence) == [figure]


@pytest.mark.parametrize(
    "text",
    [
        "| cifar10 | 91.2 % [1] | medium |",
        "a 5x5 map",
        "1x1 conv",
        "B x B x L",
        "Python 3.10 says",
        "sm_90",
        "4,000 digits",
        "256² to 128²",
    ],
)
def test_sizes_are_no_figures(text):
    assert typed_figures(text) == []

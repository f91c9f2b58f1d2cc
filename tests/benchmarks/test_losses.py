"""The bench of the other losses, on small sizes."""

import json

import pytest

from benchmarks import bench_losses
from benchmarks.bench_losses import CASES, PROVIDERS
from benchmarks.plain_losses import PLAIN, page_blocks
from benchmarks.report import tables
from benchmarks.report.rows import Rows


def small(name, **sizes):
    case = next(case for case in CASES if case.name == name)
    return case._replace(sizes=case.sizes | sizes)


def test_every_loss_of_the_page_has_a_case():
    assert [case.name for case in CASES] == list(PLAIN)
    assert {case.name for case in CASES} == set(page_blocks())


@pytest.mark.parametrize(
    "case",
    [small("cpc_loss", B=4, T=7, D=8), small("queue_loss", B=4, D=8, K=8)],
    ids=lambda case: case.name,
)
def test_rows_and_their_table(case, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_losses, "REPEATS", 3)
    out = tmp_path / "rows.jsonl"
    assert bench_losses.measure_case(case, out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["provider"] for row in rows[::2]] == list(PROVIDERS)
    times = dict(zip(PROVIDERS, (100.0, 80.0, 40.0), strict=True))
    for row in rows:
        row["q50"] = times[row["provider"]] if row["unit"] == "ms" else 2e6
    line = next(
        line for line in tables.other_losses(Rows(rows)).splitlines() if f"| {case.label} |" in line
    )
    assert "| 100 ms | 80 ms (1.2x) | 40 ms (2.5x) | 2 MB |" in line


def test_a_wrong_loss_gets_no_row(tmp_path, monkeypatch, capsys):
    def wrong(name):
        plain = PLAIN[name]
        return lambda *arguments: plain(*arguments) * 1.001

    monkeypatch.setattr(bench_losses, "page_loss", wrong)
    monkeypatch.setattr(bench_losses, "CASES", (small("cpc_loss", B=4, T=7, D=8),))
    assert bench_losses.main(["--out", str(tmp_path / "rows.jsonl")]) == 1
    assert "1e-04 allowed" in capsys.readouterr().out
    assert not (tmp_path / "rows.jsonl").exists()

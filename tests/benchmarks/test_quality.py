"""The bench that compares what both losses learn: the same draw, and goals that can fail."""

import json
from dataclasses import replace

import pytest
import torch

from amdim_fast import LossMultiNCE
from benchmarks import bench_quality, sources
from benchmarks.reference_loss import reference_loss
from benchmarks.report.goals import goal_table
from benchmarks.report.rows import Rows
from benchmarks.report.tables import quality
from tests.threads import torch_threads


def row(provider, step, metric, value, unit="%"):
    return {
        "name": "quality",
        "case": f"digits-{step}",
        "provider": provider,
        "mode": "train",
        "shapes": {"step": step},
        "metric": metric,
        "unit": unit,
        "q50": value,
        "n": 1,
        "device": "a CPU",
        "commit": "unknown",
        "source": sources.digest("quality"),
        "time": "2026-01-01",
    }


def rows(shift=0.0, seconds=30.0):
    """Three seeds at two steps; ``shift`` is added to the reference's accuracies."""
    made = [row("raw pixels, seed 0", 0, "linear_probe", 80.0)]
    made += [row(f"random weights, seed {seed}", 0, "linear_probe", 70.0 + seed) for seed in (0, 1)]
    for step in (50, 600):
        for seed, accuracy in enumerate((90.0, 91.0, 92.0)):
            for provider, more, time in (
                ("amdim_fast", 0.0, 20.0),
                ("reference loss", shift, seconds),
            ):
                name = f"{provider}, seed {seed}"
                made.append(row(name, step, "linear_probe", accuracy + more))
                made.append(row(name, step, "training_time", 1e3 * time, "ms"))
    return Rows(made)


def test_both_losses_take_the_same_locations():
    maps = [torch.randn(6, 8, side, side) for side in (1, 5, 7, 1, 5, 7)]
    recipe = bench_quality.RECIPE
    ours = LossMultiNCE(recipe.tclip, recipe.reg_weight)
    reference = reference_loss(recipe)
    locations = torch.randint(25, (6,)), torch.randint(25, (6,))
    found = reference(*maps, locations=locations)
    torch.testing.assert_close(found, ours(*maps, locations=locations))
    other = reference(*maps, locations=locations[::-1])
    assert not torch.allclose(found[2], other[2])


@pytest.mark.parametrize("provider", [bench_quality.OURS, bench_quality.REFERENCE])
def test_records_of_a_run(capsys, monkeypatch, provider):
    recipe = replace(bench_quality.RECIPE, ndf=4, n_rkhs=16, depth=1, batch_size=16)
    monkeypatch.setattr(bench_quality, "probe_encoder", lambda *_: 0.5)
    with torch_threads():
        bench_quality.run(provider, 1, (2, 3), recipe)
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["step"] for record in records] == [0, 2, 3]
    assert all(record["accuracy"] == 50.0 for record in records)
    assert 0.0 == records[0]["seconds"] < records[1]["seconds"] < records[2]["seconds"]


def test_table():
    text = quality(rows())
    assert "| raw pixels | 80.0 % |  |  |  |" in text
    assert "| random weights | 70.5 ± 0.7 % |  |  |  |" in text
    assert "| step 600 | 91.0 ± 1.0 % | 91.0 ± 1.0 % | 20 s | 30 s |" in text
    assert "3 seeds" in text
    assert quality(Rows([])) == "Not yet measured."


@pytest.mark.parametrize(
    ("shift", "seconds", "verdicts"),
    [
        (0.5, 30.0, ("0.50 points | met", "1.50x less | met")),
        (1.5, 30.0, ("1.50 points | not met", "1.50x less | met")),
        (0.0, 15.0, ("0.00 points | met", "0.75x less | not met")),
    ],
)
def test_goals_can_fail(shift, seconds, verdicts):
    text = goal_table(rows(shift, seconds), "quality_goals")
    assert all(verdict in text for verdict in verdicts)
    assert goal_table(Rows([]), "quality_goals").count("not yet measured") == 2

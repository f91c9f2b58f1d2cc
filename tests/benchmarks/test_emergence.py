"""The data and the measure of emergence, and both benches of components from end to end."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from amdim_fast.data.datasets import load_digits
from amdim_fast.nce.reference_mixture import multiscale_mixture
from benchmarks import bench_mixture, emergence
from benchmarks.composites import Composites, load_composites, location_masks, overlaps
from benchmarks.report import tables
from benchmarks.report.goals import goal_table
from benchmarks.report.rows import Rows


@pytest.fixture(scope="module")
def data():
    return load_composites(0)


def test_digits_are_where_their_masks_are(data):
    digits = load_digits()
    for found, whole in zip(data, (digits.train.images, digits.test.images), strict=True):
        assert found.images.shape == (len(whole), 32, 32, 3)
        assert torch.equal(found.masks.sum((1, 2)), (whole[..., 0] >= 128).sum((1, 2)))
    test = data[1]
    closer = 0
    for image, mask in zip(test.images.float(), test.masks, strict=True):
        distance = (image - image[mask].median(0).values).abs().sum(-1)
        closer += distance[mask].median() < distance[~mask].median()
    assert closer > 950
    centres = [mask.nonzero().float().mean(0) for mask in test.masks[:200]]
    assert torch.stack(centres).std(0).min() > 2


def test_composites_follow_the_seed(data):
    again, other = load_composites(0)[1], load_composites(1)[1]
    assert torch.equal(again.images, data[1].images)
    assert not torch.equal(other.images, again.images)


def test_location_masks_on_a_planted_square():
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[0, 2:6, 26:30] = True
    mask[0, 10:12, 10:12] = True
    mask[0, 20, 20:23] = True
    expected = torch.zeros(7, 7, dtype=torch.bool)
    expected[0, 6] = expected[2, 2] = True
    assert torch.equal(location_masks(mask)[0], expected)


def test_overlaps_by_hand():
    segments = torch.tensor([[[0, 0], [1, 2]], [[1, 1], [1, 1]]])
    masks = torch.tensor([[[True, False], [True, False]], [[True, True], [True, True]]])
    expected = torch.tensor([[1 / 3, 1 / 2, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(overlaps(segments, masks, 4), expected)


def test_perfect_labels_reach_everything():
    masks = torch.rand(20, 7, 7) > 0.5
    swapped = torch.arange(20)[:, None, None] % 2 == 0
    found = emergence.figures(
        {"same": masks.long(), "swapped": (masks ^ swapped).long()}, masks, components=2
    )
    assert found["same"] == {"IoU, best of each image": 100, "IoU, one for all": 100}
    assert found["swapped"]["IoU, best of each image"] == 100
    assert found["swapped"]["IoU, one for all"] < 80


@cache
def few_composites(seed):
    train, test = load_composites(seed)
    return train, Composites(*(part[:60] for part in test))


def test_a_tiny_run_makes_rows_and_a_figure(tmp_path, monkeypatch):
    small = {"steps": 2, "ndf": 2, "n_rkhs": 8, "depth": 1, "batch_size": 4, "mixture": 3}
    monkeypatch.setattr(emergence, "RECIPE", replace(emergence.RECIPE, **small))
    monkeypatch.setattr(emergence, "load_composites", few_composites)
    for seed in ("0", "1"):
        assert emergence.main(["--runs", str(tmp_path), "train", "--seed", seed]) == 0
    out, figure = tmp_path / "rows.jsonl", tmp_path / "figure.png"
    arguments = ["--runs", str(tmp_path), "measure", "--out", str(out), "--figure", str(figure)]
    assert emergence.main(arguments) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({row["provider"] for row in rows}) == 9
    assert all(row["n"] == 2 and row["shapes"]["seeds"] == [0, 1] for row in rows)
    assert all(0 <= row["q20"] <= row["q80"] <= 100 for row in rows)
    assert np.asarray(Image.open(figure)).shape == (312, 1248, 3)
    table = tables.small(Rows(rows), "emergence")
    assert "| components, trained encoder |" in table
    assert "entropy of the mean posterior" in goal_table(Rows(rows), "mixture_goals")


def test_measure_without_runs_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no trained models; train some first"):
        emergence.main(["--runs", str(tmp_path), "measure"])


def test_committed_figure_is_small():
    assert 0 < emergence.FIGURE.stat().st_size < 200_000


def test_step_bench_makes_rows_and_judges_them(tmp_path, monkeypatch):
    out = tmp_path / "rows.jsonl"
    monkeypatch.setattr(bench_mixture, "IMAGES", 4)
    monkeypatch.setattr(bench_mixture, "REPEATS", 3)
    assert bench_mixture.main(["--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["provider"] for row in rows] == ["plain", "K = 2", "K = 4", "K = 8"]
    for row, time in zip(rows, (100.0, 120.0, 160.0, 200.0), strict=True):
        row["q50"] = time
    assert "| K = 4 | 160 ms | 1.60x |" in tables.mixture(Rows(rows))
    assert "| at most 1.5 plain steps | 1.60x | not met |" in goal_table(
        Rows(rows), "mixture_goals"
    )
    rows[2]["q50"] = 150.0
    assert "| 1.50x | met |" in goal_table(Rows(rows), "mixture_goals")
    assert "not yet measured" in goal_table(Rows([]), "mixture_goals")


def test_wrong_loss_gets_no_row(tmp_path, monkeypatch, capsys):
    def broken(*maps, **options):
        loss_1t5, *rest = multiscale_mixture(*maps, **options)
        return 1.001 * loss_1t5, *rest

    monkeypatch.setattr(bench_mixture, "multiscale_mixture", broken)
    out = tmp_path / "rows.jsonl"
    monkeypatch.setattr(bench_mixture, "IMAGES", 4)
    monkeypatch.setattr(bench_mixture, "REPEATS", 1)
    assert bench_mixture.main(["--out", str(out)]) == 1
    assert "K = 4: " in capsys.readouterr().out
    assert [json.loads(line)["provider"] for line in out.read_text().splitlines()] == ["plain"]

"""The suite of a GPU: its parts, their order and limits, what is left out, and verdicts."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import bench_large_batch, bench_train_step, gpu, harness
from benchmarks.gpu import grid, steps
from benchmarks.report import cards
from benchmarks.report.rows import Rows


def test_the_default_parts_take_seven_minutes_at_most():
    limits = {name: gpu.PARTS[name][0] for name in gpu.DEFAULT}
    assert sum(limits.values()) <= 7 * 60
    assert sum(limits[name] for name in ("peak", "bench")) <= 4 * 60
    assert limits["test"] <= 90


def test_the_default_parts_are_in_order_of_value():
    """Is it right, the loss, steps, views, and what the rows say; questions only by name."""
    order = ["build", "test", "peak", "bench", "step", "views", "report", "goals"]
    assert order == gpu.DEFAULT
    assert list(gpu.PARTS)[: len(order)] == order


def test_nothing_is_tuned_by_the_suite_and_all_is_built_in_it():
    makefile = (gpu.ROOT / "Makefile").read_text(encoding="utf-8")

    def recipe(target):
        return makefile.partition(f"\n{target}: ")[2].partition("\n\n")[0]

    assert "-m benchmarks.gpu " in recipe("gpu")
    assert "setup.py" not in recipe("gpu")
    assert "amdim_fast.bench.autotune" in recipe("tune")
    commands = {name: make() for name, (_, make) in gpu.PARTS.items()}
    assert "setup.py" in commands["build"]
    assert not any("autotune" in " ".join(command or []) for command in commands.values())


def test_the_parts_of_training_take_five_minutes_at_most():
    limits = {name: limit for name, (limit, _) in gpu.PARTS.items()}
    assert sum(limits[name] for name in ("peak", "step", "views", "digits")) <= 5 * 60
    imports = 15  # of torch, before the clock of the steps starts
    assert limits["steps"] >= steps.SECONDS + imports
    assert limits["step"] >= steps.QUICK_SECONDS + imports
    assert gpu.PARTS["step"][1]()[-2:] == ["cuda", "--quick"]
    assert gpu.PARTS["digits"][1]()[-2:] == ["cuda", "--run"]


def test_test_files_that_need_a_missing_package_are_left_out(monkeypatch, capsys):
    folders = (*gpu.LOSS, *gpu.OTHERS)
    assert gpu.lacking(folders) == {}
    found = gpu.importlib.util.find_spec
    missing = {"PIL", "xdist"}
    monkeypatch.setattr(
        gpu.importlib.util, "find_spec", lambda name: None if name in missing else found(name)
    )
    left_out = gpu.lacking(folders)
    assert set(map(tuple, left_out.values())) == {("PIL",)}
    assert "tests/views/test_sheets.py" in left_out
    assert "tests/nce/test_gpu.py" not in left_out
    command = gpu._tests(folders)
    assert "-n" not in command
    assert {f"--ignore={file}" for file in left_out} <= set(command)
    assert "left out: tests/views/test_sheets.py; not installed: PIL\n" in capsys.readouterr().out


def test_packages_of_helpers_count(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    (tmp_path / "tests" / "data").mkdir(parents=True)
    (tmp_path / "tests" / "data" / "helper.py").write_text("def f():\n    import PIL.Image\n")
    for line in ("from tests.data import helper", "import tests.data.helper"):
        path = tmp_path / "tests" / "test_one.py"
        path.write_text(f"import torch.nn\nfrom os import path\n{line}\n")
        assert gpu.imported(path) >= {"torch", "os", "PIL"}


def test_every_test_that_needs_a_gpu_is_in_the_suite():
    suite = {*gpu.LOSS, *gpu.OTHERS, *gpu.TRAINING}
    for path in (gpu.ROOT / "tests").rglob("test_*.py"):
        if "mark.gpu" in path.read_text(encoding="utf-8") and path != Path(__file__):
            assert suite & {str(p.relative_to(gpu.ROOT)) for p in (path, path.parent)}, path
    for test in gpu.SANITIZED:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (gpu.ROOT / file).read_text(encoding="utf-8")


def test_without_a_gpu_nothing_is_run(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    assert grid.main(["peak"]) == 1
    assert bench_train_step.main(["--device", "cuda"]) == 1
    assert bench_large_batch.main(["--device", "cuda"]) == 1
    assert "torch finds no CUDA device" in capsys.readouterr().err


@pytest.fixture
def some_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(harness, "device_name", lambda device: f"some {device}")


def test_only_the_card_at_hand_is_built_for(some_card, monkeypatch, capfd, tmp_path):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.0 8.0 10.0+PTX")  # as images of containers do
    code = "import os; print('for', os.environ['TORCH_CUDA_ARCH_LIST'])"
    monkeypatch.setattr(gpu, "PARTS", {"build": (20, lambda: gpu._python("-c", code))})
    assert gpu.main(["--parts", "build", f"--out={tmp_path / 'rows.jsonl'}"]) == 0
    assert "for 9.0\n" in capfd.readouterr().out


def test_a_failing_part_does_not_stop_the_next(some_card, monkeypatch, capfd, tmp_path):
    out = tmp_path / "rows.jsonl"
    parts = {
        "bad": (20, lambda: gpu._python("-c", "raise SystemExit(3)")),
        "slow": (1, lambda: gpu._python("-c", "import time; time.sleep(30)")),
        "good": (20, lambda: gpu._python("-c", "print('ran')")),
        "absent": (20, lambda: None),
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    assert gpu.main(["--parts", *parts, f"--out={out}"]) == 1
    printed = capfd.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    said = ["FAILED: exit status 3", "FAILED: over its 1 s", "passed", "left out"]
    assert [row["provider"] for row in rows] == list(parts)
    assert [row["note"] for row in rows] == said
    assert {(row["name"], row["metric"], row["clock"], row["device"]) for row in rows} == {
        ("gpu", "part_time", "wall", "some cuda")
    }
    assert rows[1]["q50"] >= 1000
    assert "| bad | FAILED: exit status 3 |" in cards.verdicts(Rows(rows))
    assert "FAILED: exit status 3" in printed
    assert "FAILED: over its 1 s" in printed
    assert "ran" in printed
    assert "left out" in printed

"""``amdim-fast bench``: what it measures, what it calculates, what it writes and refuses."""

import json
import math
from importlib import metadata
from pathlib import Path

import pytest
import torch

from amdim_fast.bench import comparison, measure
from amdim_fast.bench import files as bench_files
from amdim_fast.bench.comparison import (
    OURS,
    REFERENCE,
    Measurement,
    compare,
    expected_bytes,
    feature_bytes,
    largest_batch,
)
from amdim_fast.bench.inputs import (
    forward,
    forward_backward,
    make_inputs,
    our_losses,
    planned_bytes,
    reference_losses,
)
from amdim_fast.cli.main import main
from amdim_fast.devices import device_name
from amdim_fast.nce.plan import PairingPlan, Plan, last_plan

CPU = torch.device("cpu")


def reference_row(images, extra):
    return Measurement(images, REFERENCE, (1.0, 2.0, 3.0), 3, extra, None)


def our_row(images, extra, work=0):
    pairing = PairingPlan("one_pass", images, images, work, 0, 0, "planted")
    return Measurement(
        images, OURS, (1.0, 2.0, 3.0), 3, extra, Plan("torch", "aten", (pairing,), 0)
    )


def test_command_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "FIRST", 4)
    monkeypatch.setattr(comparison, "LAST", 16)
    out = tmp_path / "bench"
    assert main(["bench", "--dim", "8", "--seconds", "100", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    found = json.loads((out / "bench.json").read_text())
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "bench.png"]
    rows = found["measurements"]
    assert [(row["B"], row["provider"]) for row in rows[:2]] == [(4, OURS), (4, REFERENCE)]
    assert max(row["B"] for row in rows) == 16
    for row in rows:
        time = row["time_ms"]
        assert 0 < time["q20"] <= time["q50"] <= time["q80"]
        assert row["n"] >= 3
        assert row["extra_memory_bytes"] > 0
        line = f"{time['q50']:,.1f} ms {row['extra_memory_bytes'] / 1e6:>11,.1f} MB"
        assert " ".join(line.split()) in " ".join(printed.out.split())
    assert found["largest_relative_difference"] < 1e-5
    assert found["versions"]["torch"] == torch.__version__
    assert f"backend {found['backend']}" in printed.out
    assert f"{found['largest_batch'][REFERENCE]:,}" in printed.out
    assert "calculated" in printed.out


def test_smallest_batch_is_measured_however_short_the_time(monkeypatch):
    monkeypatch.setattr(comparison, "FIRST", 2)
    seen = []
    result = compare(CPU, 3, 1e-9, seen.append)
    assert [(m.images, m.provider, m.rounds) for m in seen] == [(2, OURS, 3), (2, REFERENCE, 3)]
    assert result.measurements == seen


@pytest.mark.parametrize("general", [False, True])
@pytest.mark.parametrize("part", [0, 4])
def test_planted_error_in_a_value_or_a_gradient_is_caught(monkeypatch, part, general):
    def wrong(losses, inputs):
        found = list(forward_backward(losses, inputs))
        if losses is not reference_losses and (losses is not comparison.LOSSES[OURS]) == general:
            found[part] = found[part] * 1.001
        return tuple(found)

    monkeypatch.setattr(comparison, "forward_backward", wrong)
    with pytest.raises(ArithmeticError, match="nothing was measured"):
        compare(CPU, 8, 1.0)


def test_nan_is_caught(monkeypatch):
    monkeypatch.setitem(
        comparison.LOSSES, OURS, lambda inputs: [math.nan * sum(m.sum() for m in inputs.maps)] * 4
    )
    with pytest.raises(ArithmeticError, match="inf from the reference"):
        compare(CPU, 8, 1.0)


def test_allocations_are_counted_at_the_worst_moment():
    def call():
        passing = torch.ones(7_000_000, dtype=torch.uint8)
        del passing
        one, two = (torch.ones(4_000_000, dtype=torch.uint8) for _ in range(2))
        del one
        return two

    kept = torch.ones(1000)
    assert measure.allocated_peak(call, "cpu") == 8_000_000
    assert measure.allocated_peak(lambda: kept.view(10, 100), "cpu") == 0


def test_calculated_bytes_of_the_reference_are_those_of_a_larger_batch():
    rows = [reference_row(b, reference_extra(b, 8)) for b in (32, 64)]
    truth = reference_extra(192, 8) + feature_bytes(192, 8)
    assert expected_bytes(rows, 8, CPU, 192) == pytest.approx(truth, rel=0.05)
    assert expected_bytes(rows[:1], 8, CPU, 192) > truth


@pytest.mark.gpu
def test_on_a_gpu(tmp_path, capsys):
    out = tmp_path / "bench"
    command = ["bench", "--device", "cuda:0", "--dim", "64", "--seconds", "5", "--out", str(out)]
    assert main(command) == 0
    assert torch.cuda.get_device_name() in capsys.readouterr().out
    found = json.loads((out / "bench.json").read_text())
    rows = [row for row in found["measurements"] if row["provider"] == REFERENCE]
    assert len(rows) > 2
    assert all(row["extra_memory_bytes"] > 0 for row in found["measurements"])
    assert found["largest_batch"][OURS] > found["largest_batch"][REFERENCE]


def reference_extra(images, dim):
    inputs = make_inputs(images, dim)
    peak = measure.allocated_peak(lambda: forward_backward(reference_losses, inputs), "cpu")
    return peak - feature_bytes(images, dim) // 2


def test_a_line_and_a_square_are_continued():
    gradient = feature_bytes(1, 5) // 2
    rows = [reference_row(b, (3000 + 7 * b - gradient) * b) for b in (10, 20, 40)]
    assert expected_bytes(rows, 5, CPU, 100) == gradient * 100 + (3000 + 700) * 100


def test_ours_is_bounded_by_its_plan_and_what_grows_with_the_batch():
    row = our_row(10, extra=900, work=300)
    planned = planned_bytes(70, 5, CPU, torch.float32)
    assert expected_bytes([row], 5, CPU, 70) == feature_bytes(70, 5) + planned + 7 * 600


def test_planned_bytes_are_those_of_the_call():
    forward_backward(our_losses(), make_inputs(48, 5))
    assert planned_bytes(48, 5, CPU, torch.float32) == last_plan().peak_bytes > 0


@pytest.mark.parametrize("objective", [True, False])
def test_ours_are_the_references_values_and_gradients(objective):
    inputs, ours = make_inputs(6, 8), our_losses(objective=objective)
    expected = forward_backward(reference_losses, inputs.double())
    for found in (forward(ours, inputs), forward_backward(ours, inputs)):
        assert measure.largest_difference(found, expected[: len(found)]) < 1e-6
    assert last_plan().pairings[0].mode == ("one_pass" if objective else "keep")


@pytest.mark.parametrize("images", [32, 300])
def test_ours_takes_no_more_than_calculated(images):
    (row,) = (m for m in compare(CPU, 64, 1e-9).measurements if m.provider == OURS)
    inputs = make_inputs(images, 64)
    peak = measure.allocated_peak(lambda: forward_backward(our_losses(), inputs), "cpu")
    assert peak + feature_bytes(images, 64) // 2 <= expected_bytes([row], 64, CPU, images)


@pytest.mark.parametrize("free", [0, 6, 7, 8, 63, 64, 10**12])
def test_largest_batch_by_exhaustion(free):
    expected = max((b for b in range(2_000_000) if 7 * b <= free), default=0)
    found = largest_batch(lambda b: 7 * b, free)
    assert found == (expected if free < 10**12 else free // 7)


def test_features_are_counted():
    inputs = make_inputs(6, 5)
    assert 2 * inputs.nbytes == feature_bytes(6, 5)
    assert inputs.nbytes == sum(m.numel() * m.element_size() for m in inputs.maps)


@pytest.mark.parametrize("alone", [our_row(64, 9), reference_row(64, 9)])
def test_factors_are_of_the_largest_batch_of_both(alone):
    rows = [our_row(32, 10), reference_row(32, 40), alone]
    result = comparison.Comparison({}, rows, 10**9, {OURS: 7000, REFERENCE: 600})
    text = bench_files.summary(result)
    assert "at B = 32, reference / amdim_fast: time 1.00, extra memory 4.00" in text
    assert "amdim_fast 7,000, reference 600" in text


def test_time_is_given_to_ours_first():
    slow = [our_row(32, 0), reference_row(32, 0)]
    cost = comparison.GROWTH * 2.0 / 1e3
    assert comparison._affordable(slow, 2.5 * cost) == [OURS, REFERENCE]
    assert comparison._affordable(slow, 1.5 * cost) == [OURS]
    assert comparison._affordable(slow, 0.5 * cost) == []


def test_memory_ends_the_series(monkeypatch):
    monkeypatch.setattr(comparison, "FIRST", 8)
    monkeypatch.setattr(comparison, "free_memory", lambda device_type: 2_000_000)
    result = compare(CPU, 8, 60.0)
    for provider in (OURS, REFERENCE):
        sizes = [m.images for m in result.measurements if m.provider == provider]
        assert sizes[-1] <= result.largest[provider] < 4 * sizes[-1]


def test_unknown_free_memory_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(comparison, "FIRST", 2)
    monkeypatch.setattr(comparison, "free_memory", lambda device_type: None)
    out = tmp_path / "bench"
    assert main(["bench", "--dim", "4", "--seconds", "0.01", "--out", str(out)]) == 0
    assert "largest batch: not known" in capsys.readouterr().out
    assert json.loads((out / "bench.json").read_text())["largest_batch"] == {
        "calculated": True,
        "free_bytes": None,
    }


def test_free_memory_of_this_machine():
    free = measure.free_memory("cpu")
    assert free is None or 0 < free < 1 << 50


def test_a_system_without_proc_and_a_machine_without_triton(monkeypatch):
    def absent(*arguments):
        raise FileNotFoundError(arguments[0])

    def no_package(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr(measure.platform, "processor", lambda: "some processor")
    monkeypatch.setattr(measure.metadata, "version", no_package)
    assert measure.free_memory("cpu") is None
    assert device_name("cpu") == f"some processor, {torch.get_num_threads()} threads"
    assert measure.versions()["triton"] is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dim", "0"], "dim is 0; it must be 1 or more"),
        (["--dim", str(10**9)], "32 images of that width do not fit"),
        (["--seconds", "0"], "seconds is 0.0; it must be a finite number above 0"),
        (["--seconds", "nan"], "seconds is nan"),
        (["--device", "meta"], "device is 'meta'; it must be cpu or cuda"),
        (["--device", "tpu9"], "device is 'tpu9'"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(tmp_path, capsys, arguments, sentence):
    assert main(["bench", *arguments, "--out", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_before_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("amdim_fast.cli.bench.compare", pytest.fail)
    assert main(["bench", "--out", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_without_matplotlib_nothing_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("amdim_fast.cli.bench.compare", pytest.fail)
    monkeypatch.setitem(bench_files.require.__globals__, "import_module", missing)
    assert main(["bench", "--out", str(tmp_path / "new")]) == 2
    assert "drawing the comparison needs matplotlib" in capsys.readouterr().err


def missing(module):
    raise ModuleNotFoundError(f"No module named {module!r}", name=module)

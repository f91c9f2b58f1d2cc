"""Rows say by which clock and beside whom; no table mixes cards or versions of torch."""

import json
import re

import pytest
import torch

from benchmarks import bench_losses, bench_nce, harness
from benchmarks.report import tables
from benchmarks.report.rows import Rows, conditions

CASE = "cuda-b256-d1024-bfloat16"
OURS = "triton_objective"


def row(provider=OURS, value=2.0, metric="time", unit="ms", device="NVIDIA H100", **more):
    condition = harness.Condition("nce", CASE, provider, "forward_backward", {}, "bfloat16")
    return harness.make_row(condition, metric, unit, [value], device=device, **more)


def with_torch(found, version, time="2999-01-01T00:00:00+00:00"):
    return {**found, "versions": {**found["versions"], "torch": version}, "time": time}


@pytest.mark.parametrize(
    ("unit", "clock", "said"),
    [
        ("ms", "wall", "wall"),
        ("ms", "device", "device"),
        ("images/s", "device", "device"),
        ("TFLOP/s", "wall", "wall"),
        ("bytes", "wall", ""),
        ("%", "wall", ""),
        ("", "device", ""),
    ],
)
def test_times_and_rates_name_their_clock(unit, clock, said):
    assert row(unit=unit, clock=clock)["clock"] == said


def test_rows_of_cpus_name_the_instruction_set_and_no_table_mixes_two(tmp_path):
    condition = harness.Condition("nce", "cpu-b4", OURS, "forward", {}, "float32")
    harness.record(tmp_path / "rows.jsonl", condition, "time", "ms", [1.0])
    found = json.loads((tmp_path / "rows.jsonl").read_text())
    assert found["instructions"] == torch.backends.cpu.get_cpu_capability()
    older = {key: value for key, value in found.items() if key != "instructions"}
    assert f"threads; {found['instructions']};" in conditions([found, older])
    with pytest.raises(ValueError, match="nce cpu-b4 mixes instruction sets: AVX1, "):
        conditions([found, {**found, "instructions": "AVX1"}])


def test_a_case_beside_other_work_says_so(tmp_path):
    case = bench_nce.Case("cpu", 4, 8, "float32", ("torch",), repeats=1, taken=1)
    assert bench_nce.measure_case(case, tmp_path / "rows.jsonl") == set()
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    (time,) = (row for row in rows if row["metric"] == "time")
    assert time["case"] == "cpu-b4-d8-float32-taken1"
    assert re.fullmatch(r"1 of \d+ cores taken on purpose", time["note"])


def test_processes_that_take_cores_are_ended(monkeypatch):
    started, popen = [], harness.subprocess.Popen
    monkeypatch.setattr(
        harness.subprocess, "Popen", lambda *a, **o: started.append(popen(*a, **o)) or started[-1]
    )
    with harness.taken_cores(2):
        assert [process.poll() for process in started] == [None, None]
    assert [process.returncode for process in started] == [-9, -9]


def test_unknown_clock_is_refused():
    with pytest.raises(ValueError, match="clock is 'cpu'; it must be one of wall, device"):
        row(clock="cpu")


def test_a_time_of_a_gpu_without_a_clock_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "device_name", lambda device: "NVIDIA H100")
    condition = harness.Condition("nce", CASE, OURS, "forward_backward", {}, "bfloat16")
    out = tmp_path / "rows.jsonl"
    with pytest.raises(ValueError, match="clock is missing for time"):
        harness.record(out, condition, "time", "ms", [1.0], "cuda")
    harness.record(out, condition, "time", "ms", [1.0], "cuda", clock="device")
    harness.record(out, condition, "extra_peak_memory", "bytes", [1.0], "cuda")
    found = [json.loads(line)["clock"] for line in out.read_text().splitlines()]
    assert found == ["device", ""]


def test_peers_beside_a_row_are_the_others():
    assert row(beside=["triton", OURS, "reference"])["beside"] == ["reference", "triton"]
    assert row()["beside"] == []


def test_rows_of_the_benches_name_who_ran_beside_them(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_losses, "REPEATS", 1)
    case = next(case for case in bench_losses.CASES if case.name == "cpc_loss")
    out = tmp_path / "rows.jsonl"
    bench_losses.measure_case(case._replace(sizes=case.sizes | {"B": 4, "T": 7, "D": 8}), out)
    bench_nce.measure_case(
        bench_nce.Case("cpu", 4, 8, "float32", ("reference", "torch", "gemms"), repeats=1), out
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    times = [row for row in rows if row["metric"] == "time"]
    assert all(row["clock"] == ("wall" if row["metric"] == "time" else "") for row in rows)
    for name, providers in (
        ("losses", bench_losses.PROVIDERS),
        ("nce", ("reference", "torch", "gemms")),
    ):
        found = {row["provider"]: row["beside"] for row in times if row["name"] == name}
        assert found == {p: sorted({*providers} - {p}) for p in providers}


def test_conditions_say_which_clock_and_nothing_of_rows_that_do_not():
    device = row(metric="device_time", clock="device")
    assert "device time by the device clock n = 1 and time by the wall clock n = 1" in conditions(
        [row(), device]
    )
    old = {key: value for key, value in row().items() if key not in ("clock", "beside")}
    assert "clock" not in conditions([old])
    assert "time n = 1" in conditions([old])


def test_a_table_of_two_cards_is_refused():
    rows = [row(), row("reference", device="NVIDIA H200")]
    with pytest.raises(ValueError, match=f"a table of nce {CASE} mixes devices: NVIDIA H100, NV"):
        tables.table(["", "time"], [], rows)
    tables.table(["", "time"], [], rows[:1])


def test_a_table_of_two_versions_of_torch_is_refused():
    rows = [row(), with_torch(row("reference"), "2.10.0")]
    with pytest.raises(ValueError, match=r"mixes versions of torch: 2\.10\.0, "):
        tables.table(["", "time"], [], rows)


def test_numbers_of_threads_of_one_cpu_are_one_machine():
    conditions([row(device="some CPU, 1 threads"), row(device="some CPU, 2 threads")])
    with pytest.raises(ValueError, match="mixes devices"):
        conditions([row(device="some CPU, 1 threads"), row(device="other CPU, 1 threads")])


def test_newer_torch_leaves_rows_of_an_older_one_aside():
    rows = [row("reference", 8.0), with_torch(row(), "2.99.0")]
    text = tables.nce_on_card(Rows(rows))
    assert "2.99.0" in text
    assert "| original algorithm | not yet measured |" in text
    assert "| amdim_fast | 2 ms |" in text


def test_rows_of_one_card_are_found_by_its_name():
    rows = Rows([row("reference", 8.0, device="NVIDIA H100 80GB HBM3"), row(device="NVIDIA H1000")])
    assert rows.find("nce", provider="reference") is None
    (found,) = rows.on("H100").named("nce")
    assert found["q50"] == 8.0
    assert rows.on("B200").named("nce") == []

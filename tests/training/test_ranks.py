"""Runs on 1, 2 and 4 gloo processes against one; stopped, killed and resumed on other numbers."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from amdim_fast.checkpoints.torch_files import read_checkpoint
from amdim_fast.data.datasets import LOADERS
from amdim_fast.distributed.ranks import Ranks
from amdim_fast.model.probes import probe_loss
from amdim_fast.nce.feature_maps import draw_locations
from tests.processes import found_by_ranks, start, started_ranks
from tests.training import ranks_cases as cases
from tests.training import tiny
from tests.training.tiny import wait_for_step

WORLDS = (1, 2, 4)
SECONDS = 240
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Of each world size, started once, what each rank found, and its folder."""
    parent = tmp_path_factory.mktemp("ranks")
    of = found_by_ranks(cases.__file__, parent, SECONDS)
    return lambda world: (of(world), parent / str(world))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process without a group found, and its folder."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LOADERS, "digits", cases.partly_labeled)
        return cases.compared(folder), folder


def furthest(records, expected):
    """The largest error of a term, in units of the term or of 1."""
    names = [name for name in expected[0] if re.match("loss|lgt|probe|posterior|usage", name)]
    assert len(names) == 8
    return max(
        abs(ours[name] - truth[name]) / max(1, abs(truth[name]))
        for ours, truth in zip(records, expected, strict=True)
        for name in names
    )


def joined(tensors):
    return torch.cat([tensor.double().flatten() for tensor in tensors])


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(
    ("name", "loss", "gradient"),
    [("step", 1e-6, 1e-5), ("whole", 5e-7, 1e-6), ("cached", 5e-7, 1e-6)],
)
def test_steps_are_those_of_one_process(found, alone, world, name, loss, gradient):
    ranks, folder = found(world)
    truth, folder_alone = alone
    ours, expected = cases.records(folder / name), cases.records(folder_alone / name)
    assert furthest(ours, expected) < loss
    for key in ("accuracy_linear", "accuracy_mlp", "step"):
        assert [record[key] for record in ours] == [record[key] for record in expected]
    _, grads, weights = truth[name]
    whole = joined(grads.values()).norm()
    for _, first, last in (rank[name] for rank in ranks):
        assert first.keys() == grads.keys()
        for key, grad in grads.items():
            error = (first[key] - grad).norm()
            assert error < gradient * grad.norm() + 1e-7 * whole, key
        assert all(torch.equal(last[key], ranks[0][name][2][key]) for key in weights)
        if name != "step":
            assert joined(last.values()).sub(joined(weights.values())).norm() < 1e-5
    config = json.loads((folder / name / "config.json").read_text())
    assert config["world_size"] == world


def test_the_same_bits_every_run(found):
    _, folder = found(2)
    once, twice = (read_checkpoint(folder / name / "checkpoint.pt") for name in ("once", "twice"))
    assert all(torch.equal(once["model"][name], twice["model"][name]) for name in once["model"])
    assert once["window"] == twice["window"]


@pytest.mark.parametrize("plant", cases.PLANTED, ids=lambda plant: plant.__name__)
def test_planted_errors_are_caught(found, alone, plant):
    expected = cases.records(alone[1] / "whole")[:2]
    for rank in found(2)[0]:
        assert furthest(rank["planted"][plant.__name__], expected) > 1e-3


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("nan", "NotFinite", r"^loss_1t5 is nan at step 3; .*checkpoint.pt, of step 0; a lower"),
        ("views", "OSError", r"^rank 1: images/7.jpg cannot be read; .*, of step 2; go on with --"),
        ("data", "ValueError", r"^images is 400 on rank 0 and 100 on rank 1; it must be the"),
        ("disk", "OSError", r"^rank 0: the checkpoint of step 8 could not be .* of step 4; make"),
        ("exists", "FileExistsError", r"^rank 0: run folder .* exists already; choose another"),
        ("batch", "ValueError", r"^batch_size is 15, of all processes together; it must be a mult"),
    ],
)
def test_one_sentence_on_all_ranks(found, name, kind, words):
    first, second = (rank["errors"][name] for rank in found(2)[0])
    assert first == second
    assert first[0] == kind
    assert re.search(words, first[1])


def test_a_signal_to_one_stops_all_after_the_same_step(found):
    ranks, folder = found(2)
    for stopped, resumed in (rank["stopped"] for rank in ranks):
        assert (stopped["interrupted"], stopped["step"]) == (True, 4)
        assert (resumed["interrupted"], resumed["step"]) == (False, cases.STEPS)
    steps = [record["step"] for record in cases.records(folder / "stopped")]
    assert steps == list(range(1, cases.STEPS + 1))


def test_synchronised_batchnorm_is_that_of_the_whole_batch(found):
    ranks, _ = found(2)
    truth = ranks[0]["batchnorm"][0]
    ours = [rank["batchnorm"][1] for rank in ranks]
    for place in (0, 1):
        whole = torch.cat([rank[place] for rank in ours])
        torch.testing.assert_close(whole, truth[place], rtol=1e-12, atol=1e-12)
    for index, expected in enumerate(truth[2]):
        total = sum(rank[2][index] for rank in ours)
        torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    for rank in ours:
        torch.testing.assert_close(rank[3], truth[3], rtol=1e-12, atol=1e-12)
    for rank in ranks:
        eager, compiled = rank["batchnorm"][1:]
        assert torch.equal(compiled[0], eager[0])
        assert torch.equal(compiled[1], eager[1])


def test_counts_weigh_the_ranks_of_a_probe():
    logits, labels = torch.randn(8, 3), torch.tensor([0, 1, 2, 0, -1, -1, -1, 1])
    mean = (labels >= 0).sum() / 2
    parts = [probe_loss(logits[i : i + 4], labels[i : i + 4], mean) for i in (0, 4)]
    torch.testing.assert_close(sum(parts) / 2, probe_loss(logits, labels))


def test_shares():
    four = Ranks(rank=1, world_size=4, local_rank=1, local_world_size=4)
    four.check_batch(8)
    for batch in (4, 10):
        with pytest.raises(ValueError, match="it must be a multiple of 4 that leaves each of"):
            four.check_batch(batch)


@pytest.mark.parametrize("world", WORLDS)
def test_locations_are_those_of_the_whole_batch(world):
    for seed in range(5):
        whole = torch.randint(0, 25, (12,), generator=torch.Generator().manual_seed(seed))
        generators = [torch.Generator().manual_seed(seed) for _ in range(world)]
        parts = [
            draw_locations(torch.empty(12 // world, 25, 3), generator, rank=rank, world_size=world)
            for rank, generator in enumerate(generators)
        ]
        assert torch.equal(torch.cat(parts), whole)
        alone = draw_locations(torch.empty(12, 25, 3), torch.Generator().manual_seed(seed))
        assert torch.equal(alone, whole)
        states = [generator.get_state() for generator in generators]
        assert all(torch.equal(state, states[0]) for state in states)


def rank_process(process, rank):
    """The process that torchrun started as this rank."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(place.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1])
            variables = place.joinpath("environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        if parent == process.pid and f"RANK={rank}".encode() in variables:
            return int(place.name)
    raise AssertionError(f"no rank {rank}")


def resumes_in_log(folder):
    changes = [record for record in cases.records(folder) if "world_size" in record]
    return [(change["world_size_before"], change["world_size"]) for change in changes]


@pytest.mark.skipif(sys.platform != "linux", reason="finds ranks in /proc")
def test_torchrun_killed_and_resumed_on_one(tmp_path):
    process = start(
        [*TORCHRUN, tiny.__file__, "--name=run", "--runs-dir=.", "--timeout=60"], tmp_path
    )
    assert wait_for_step(process, tmp_path / "run" / "log.jsonl", 9)
    os.kill(rank_process(process, 1), signal.SIGKILL)
    output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode != 0
    assert re.search(
        r"amdim-fast: rank 0 of 2 lost another process in step \d+ \(.*\); the last good checkpoint"
        r" is run/checkpoint.pt, of step \d+; start all of them again with --resume run\n",
        errors,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    process = start([tiny.__file__, "--resume=run"], tmp_path)
    output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    assert re.search(r"resuming after step \d+ with 1 process.*; before, there were 2\n", errors)
    assert "run, with curves.png" in output
    assert resumes_in_log(tmp_path / "run") == [(2, 1)]
    assert read_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 60


def test_stopped_on_one_and_on_torchrun(tmp_path):
    process = start([tiny.__file__, "--name=run", "--runs-dir=."], tmp_path)
    assert wait_for_step(process, tmp_path / "run" / "log.jsonl", 3)
    process.terminate()
    process.communicate(timeout=SECONDS)
    before = read_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"]
    assert before < 60
    process = start([*TORCHRUN, tiny.__file__, "--resume=run"], tmp_path)
    assert wait_for_step(process, tmp_path / "run" / "log.jsonl", before + 4)
    process.terminate()
    output, errors = process.communicate(timeout=SECONDS)
    stopped = read_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"]
    # Gloo of torch 2.10 prints there too, in pieces that the ranks mix.
    said = f"stopped after step {stopped} of 60; continue with: amdim-fast pretrain --resume run\n"
    assert output.endswith(said)
    assert output.count("stopped") == 1
    assert f"resuming after step {before} with 2 process(es); before, there were 1\n" in errors
    assert resumes_in_log(tmp_path / "run") == [(1, 2)]


def test_a_rank_that_stands_still(tmp_path):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    with started_ranks(cases.__file__, 2, tmp_path, "hang", variables=variables) as ranks:
        errors = ranks[0].communicate(timeout=SECONDS)[1]
    assert ranks[0].returncode == 1
    assert re.search(
        r"LostRank: rank 0 of 2 lost another process in step 4 \(.*of step 0; ", errors
    )

"""A step as a CUDA graph: inputs, values, the rate and resuming, with a recorder for CPUs."""

import copy
from dataclasses import replace

import pytest
import torch

from amdim_fast.training import graph
from amdim_fast.training.graph import WARM_UP, StepGraph, check_graph
from amdim_fast.training.step import Training, build_model
from tests.training.tiny import TINY

IMAGES, STEPS = 16, WARM_UP + 3
CPU = torch.device("cpu")


def recorder(monkeypatch):
    """Replaying runs the step again on the recorded inputs and memory; counts both."""
    counts = {"recorded": 0, "replayed": 0}

    def record(step, device):
        counts["recorded"] += 1
        state = torch.get_rng_state()
        values = torch.full((len(training.names),), torch.nan) if training else torch.empty(3)

        def replay():
            counts["replayed"] += 1
            values.copy_(step())

        torch.set_rng_state(state)
        return replay, values

    training = None

    def use(found):
        nonlocal training
        training = found

    monkeypatch.setattr(graph, "record", record)
    return counts, use


def make(cuda_graph, seed=0):
    torch.manual_seed(seed)
    recipe = replace(TINY, cuda_graph=cuda_graph, steps=STEPS, warmup_steps=STEPS)
    return Training(build_model(recipe, 10), recipe, IMAGES, seed=0)


def inputs(step):
    generator = torch.Generator().manual_seed(step)
    views = torch.randn(2, IMAGES, 3, 32, 32, generator=generator)
    return views, torch.randint(-1, 10, (IMAGES,), generator=generator)


def take(training, steps):
    found = []
    for step in steps:
        torch.manual_seed(step)
        found.append(training.update(*inputs(step)))
    return found


def state(training):
    return {name: value.clone() for name, value in training.model.state_dict().items()}


def test_steps_of_a_graph_are_the_steps_without(monkeypatch):
    counts, use = recorder(monkeypatch)
    plain, graphed = make(False), make(True)
    use(graphed)
    right, found = take(plain, range(STEPS)), take(graphed, range(STEPS))
    assert counts == {"recorded": 1, "replayed": STEPS - WARM_UP}
    # The rate is a float32 tensor instead of a number.
    for ours, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert len({value.data_ptr() for value in found}) == STEPS
    rates = [float(group["lr"]) for group in graphed.optimizer.param_groups]
    assert rates == pytest.approx([group["lr"] for group in plain.optimizer.param_groups])
    assert rates[0] == pytest.approx(graphed.recipe.learning_rate)
    last = state(plain)
    for name, value in state(graphed).items():
        torch.testing.assert_close(value, last[name], rtol=1e-3, atol=1e-5)


def test_a_run_resumes_with_and_without(monkeypatch):
    _, use = recorder(monkeypatch)
    for before, after in ((True, True), (True, False), (False, True)):
        begun = make(before)
        use(begun)
        take(begun, range(2))
        weights, saved = state(begun), copy.deepcopy(begun.state())
        whole = take(begun, range(2, 4))
        resumed = make(after, seed=1)
        use(resumed)
        resumed.model.load_state_dict(weights)
        resumed.load_state(saved)
        for ours, theirs in zip(take(resumed, range(2, 4)), whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert all(
            isinstance(g["lr"], torch.Tensor) == after for g in resumed.optimizer.param_groups
        )


def test_a_rate_of_a_checkpoint_on_another_device_is_replaced(monkeypatch):
    _, use = recorder(monkeypatch)
    training = make(True)
    use(training)
    for options in training.optimizer.param_groups:
        options["lr"] = torch.empty((), device="meta")
    take(training, range(1))
    rates = [group["lr"] for group in training.optimizer.param_groups]
    assert {rate.device for rate in rates} == {CPU}
    assert all(0 < float(rate) < training.recipe.learning_rate for rate in rates)


def test_inputs_are_copied_and_keep_their_shapes(monkeypatch):
    recorder(monkeypatch)
    step = StepGraph(lambda x, y: torch.stack([x.sum(), y.sum(), x.sum() * y.sum()]), CPU)
    for number in range(6):
        x, y = torch.full((3,), float(number)), torch.full((2,), 2.0)
        assert step(x, y).tolist() == [3.0 * number, 4.0, 12.0 * number]
    with pytest.raises(ValueError, match=r"shape \[4\]; the CUDA graph was recorded with \[3\]"):
        step(torch.zeros(4), y)


def test_a_step_that_cannot_be_recorded_says_what_to_do(monkeypatch):
    def refuse(step, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graph, "record", refuse)
    step = StepGraph(torch.sin, CPU)
    for _ in range(WARM_UP):
        step(torch.zeros(2))
    with pytest.raises(RuntimeError, match=r"not permitted .*; turn off cuda_graph"):
        step(torch.zeros(2))


def test_where_it_cannot_be():
    with pytest.raises(ValueError, match="cuda_graph is on, but the device is cpu"):
        check_graph(True, CPU, 1)
    with pytest.raises(ValueError, match="there are 2 processes; it works with one"):
        check_graph(True, torch.device("cuda"), 2)
    check_graph(False, CPU, 2)
    for name, value in (("micro_batch", 8), ("checkpoint_blocks", True)):
        with pytest.raises(ValueError, match=f"cuda_graph and {name} are both on"):
            replace(TINY, cuda_graph=True, **{name: value})


def test_description_names_the_way():
    described = make(True).describe()
    assert described["execution"] == "CUDA graph, eager"
    assert make(False).describe() == described | {"execution": "eager"}
    compiled = replace(TINY, compile=True, precision="bfloat16")
    found = Training(build_model(compiled, None), compiled, IMAGES, seed=0).describe()
    assert found == {
        "device": "cpu",
        "precision": "bfloat16",
        "loss": "torch",
        "views": "compiled",
        "encoder": "torch",
        "execution": "compiled encoder",
    }


@pytest.mark.gpu
def test_on_a_gpu_a_recorded_step_trains_as_an_eager_one():
    losses = []
    for cuda_graph in (False, True):
        torch.manual_seed(0)
        recipe = replace(TINY, cuda_graph=cuda_graph, steps=STEPS, precision="float32")
        training = Training(build_model(recipe, 10).cuda(), recipe, IMAGES, seed=0)
        views, labels = (value.cuda() for value in inputs(0))
        losses.append(torch.stack([training.update(views, labels)[:4].sum() for _ in range(12)]))
    # Convolutions may round to tf32 (1e-3) and by other algorithms; Adam's first steps amplify it.
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-2, atol=2e-2)
    assert losses[1][-1] < losses[1][0]

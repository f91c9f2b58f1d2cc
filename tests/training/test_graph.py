"""A step as a CUDA graph: inputs, values, the rate and resuming, with a recorder for CPUs."""

import copy
from dataclasses import replace

import pytest
import torch

from amdim_fast.distributed.ranks import Ranks
from amdim_fast.training import graph
from amdim_fast.training.graph import WARM_UP, StepGraph, check_graph, uses_graph
from amdim_fast.training.step import Training, build_model
from tests.training.tiny import TINY

IMAGES, STEPS = 16, WARM_UP + 3
CPU = torch.device("cpu")
RECOMPUTING = {"micro_batch": 8, "checkpoint_blocks": True}


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
    last, first = state(plain), state(make(True))
    for name, value in state(graphed).items():
        difference = (value - last[name]).float()
        # BatchNorm moves this bias into its mean; its gradient is rounding, which Adam follows.
        if name.endswith("shortcut.bias"):
            assert difference.abs().max() <= 2 * STEPS * graphed.recipe.learning_rate
            continue
        if not name.endswith("bn_out.bn.running_mean"):
            torch.testing.assert_close(value, last[name], rtol=1e-3, atol=1e-5)
        assert difference.norm() <= 1e-3 * (last[name] - first[name]).float().norm(), name


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
        for options in resumed.optimizer.param_groups:
            assert isinstance(options["lr"], torch.Tensor) == after
            assert options["capturable"] == after


def test_a_state_that_is_loaded_ends_the_recording(monkeypatch):
    """The recording would go on with the optimizer's tensors of before."""
    counts, use = recorder(monkeypatch)
    training = make(True)
    use(training)
    take(training, range(1))
    weights, saved = state(training), copy.deepcopy(training.state())
    right = take(training, range(1, STEPS))
    training.model.load_state_dict(weights)
    training.load_state(saved)
    for ours, theirs in zip(take(training, range(1, STEPS)), right, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert counts["recorded"] == 2


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


def test_inputs_are_copied_and_others_than_those_recorded_are_not_replayed(monkeypatch):
    counts, _ = recorder(monkeypatch)
    step = StepGraph(lambda x, y: torch.stack([x.sum(), y.sum(), x.sum() * y.sum()]), CPU)
    for number in range(6):
        x, y = torch.full((3,), float(number)), torch.full((2,), 2.0)
        assert step(x, y).tolist() == [3.0 * number, 4.0, 12.0 * number]
    assert counts == {"recorded": 1, "replayed": 3}
    for x in (torch.ones(4), torch.ones(4, dtype=torch.float64)):
        assert step(x, y).tolist() == [4.0, 4.0, 16.0]
    assert counts == {"recorded": 1, "replayed": 3}
    assert step(torch.ones(3), y).tolist() == [3.0, 4.0, 12.0]
    assert counts == {"recorded": 1, "replayed": 4}


def test_what_is_recorded_has_been_called_before(monkeypatch):
    """A library chooses its algorithm for the shapes of a call, which a recording cannot do."""
    counts, _ = recorder(monkeypatch)
    step = StepGraph(lambda x: torch.stack([x.sum()] * 3), CPU)
    for size in (2, 2, 2, 3, 3, 3, 2, 4, 4, 4):
        assert step(torch.ones(size)).tolist() == [size] * 3
    assert counts["recorded"] == 0
    assert step(torch.ones(4)).tolist() == [4.0] * 3
    assert counts == {"recorded": 1, "replayed": 1}


def test_a_step_that_cannot_be_recorded_says_what_to_do(monkeypatch):
    def refuse(step, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graph, "record", refuse)
    step = StepGraph(torch.sin, CPU)
    for _ in range(WARM_UP):
        step(torch.zeros(2))
    with pytest.raises(RuntimeError, match=r"not permitted .*; turn off cuda_graph \(--no-cuda"):
        step(torch.zeros(2))


def test_where_it_cannot_be():
    with pytest.raises(ValueError, match="cuda_graph is on, but the device is cpu"):
        check_graph(True, CPU, 1)
    for processes in (1, 2):
        check_graph(None, CPU, processes)
    with pytest.raises(ValueError, match="there are 2 processes; it works with one"):
        check_graph(True, torch.device("cuda"), 2)
    check_graph(False, CPU, 2)
    for name, value in RECOMPUTING.items():
        with pytest.raises(ValueError, match=f"cuda_graph and {name} are both on"):
            replace(TINY, cuda_graph=True, **{name: value})


def chosen(device="cuda", group=None, hooked=False, **options):
    recipe = replace(TINY, **options)
    model = build_model(recipe, 10)
    if hooked:
        model.encoder.layer_list[0].register_forward_hook(lambda *_: None)
    return uses_graph(recipe, model, torch.device(device), Ranks(group=group))


def test_where_it_is_by_itself(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert TINY.cuda_graph is None
    assert chosen()
    assert chosen(mixture=2, clip_grad_norm=1.0, freeze_bn=True, use_bn=True)
    assert not chosen("cpu")
    assert not chosen(group=object())
    assert not chosen(hooked=True)
    for name, value in {**RECOMPUTING, "compile": True, "deterministic": True}.items():
        assert not chosen(**{name: value})
    # By name it is what the name says.
    assert chosen(cuda_graph=True, compile=True, deterministic=True)
    assert chosen("cpu", cuda_graph=True, hooked=True)
    assert not chosen(cuda_graph=False)
    monkeypatch.setattr(torch.version, "cuda", None)  # a torch for ROCm
    assert not chosen()


def test_description_names_the_way():
    described = make(True).describe()
    assert described["execution"] == "CUDA graph, eager"
    for cuda_graph in (False, None):  # on a CPU
        assert make(cuda_graph).describe() == described | {"execution": "eager"}
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
    for cuda_graph in (False, None):
        torch.manual_seed(0)
        recipe = replace(TINY, cuda_graph=cuda_graph, steps=STEPS, precision="float32")
        training = Training(build_model(recipe, 10).cuda(), recipe, IMAGES, seed=0)
        assert training.describe()["execution"] == ("CUDA graph, eager" if losses else "eager")
        views, labels = (value.cuda() for value in inputs(0))
        losses.append(torch.stack([training.update(views, labels)[:4].sum() for _ in range(12)]))
    # Convolutions may round to tf32 (1e-3) and by other algorithms; Adam's first steps amplify it.
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-2, atol=2e-2)
    assert losses[1][-1] < losses[1][0]

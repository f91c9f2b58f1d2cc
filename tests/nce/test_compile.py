"""torch.compile and torch.export: batches of any size in one graph, with eager's values."""

from functools import partial

import numpy as np
import pytest
import torch
import torch._functorch.config
import torch._inductor.config

import amdim_fast
from amdim_fast import LossMultiNCE, last_plan, nce_loss, nce_objective
from amdim_fast.nce import reference
from tests.nce.compiled import CASES, WIDTH, assert_equal, compiled, evaluated, pair

BATCHES = (8, 6, 7, 30, 31, 100, 64, 3, 2, 5)
WAYS = ({}, {"dynamic": True, "fullgraph": True})
OTHERS = ({"fullgraph": True}, {"dynamic": True})
# torch.func inside torch.compile
BEFORE_2_12 = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12)
# A graph that is made anew counts twice; before 2.12 torch may do so for numbers of any kind.
ONE_GRAPH = (1, 2) if BEFORE_2_12 else (1,)


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, options) for name in CASES for options in WAYS]
    + [("multi", options) for options in OTHERS],
    ids=str,
)
def test_batches_of_any_size_take_one_graph_more(name, options):
    """The first is for one size, unless sizes are dynamic; the next one is for all."""
    make, inputs_of = CASES[name]
    function = make()
    called, graphs = compiled(function, **options)
    counts = []
    for images in BATCHES:
        inputs = inputs_of(images)
        assert_equal(evaluated(called, inputs), evaluated(function, inputs))
        counts.append(graphs.frame_count)
    if "dynamic" in options or counts[-1] == 1:
        assert counts[0] in ONE_GRAPH
        assert len(set(counts)) == 1
    else:
        assert counts == [1, *[2] * 9]


@pytest.mark.parametrize("budget", [None, 2_000])
def test_the_kernels(budget):
    """Their kept scores have padding, of sizes that the graph works out."""
    function = partial(nce_loss, backend="triton", memory_budget=budget)
    called, graphs = compiled(function, dynamic=True, fullgraph=True)
    for images in BATCHES[:3]:
        inputs = pair(images)
        assert_equal(evaluated(called, inputs), evaluated(function, inputs))
        assert last_plan().pairings[0].mode == ("keep" if budget is None else "recompute")
    assert graphs.frame_count in ONE_GRAPH


def test_a_function_with_a_transform_of_torch_func():
    """torch breaks the graph there, but not within the op; before 2.12 it stops."""

    def function(src, trg):
        return torch.func.grad(lambda src: nce_loss(src, trg)[0])(src)

    src, trg = pair(6)
    called, graphs = compiled(function)
    if BEFORE_2_12:
        with pytest.raises(torch._dynamo.exc.TorchRuntimeError, match="setup_context"):
            called(src, trg)
        return
    assert_equal([called(src, trg)], [function(src, trg)])
    assert graphs.frame_count <= 2


def test_the_plan_is_made_when_the_graph_runs():
    """Scores of a small batch are kept, those of a large one are not."""
    called, graphs = compiled(CASES["small budget"][0](), dynamic=True)
    modes = []
    for images in (8, 40, 12, 60):
        evaluated(called, pair(images))
        modes.append(last_plan().pairings[0].mode)
    assert modes == ["keep", "recompute"] * 2
    assert graphs.frame_count in ONE_GRAPH


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_the_whole_model(options):
    model = amdim_fast.AMDIM(32, 4, WIDTH, 1)
    called, _ = compiled(lambda *given: model(*given)[:4], backend="eager", **options)
    for images in BATCHES[:3]:
        inputs = [torch.randn(images, 3, 32, 32) for _ in range(2)]
        expected = evaluated(lambda *given: model(*given)[:4], inputs)
        torch.testing.assert_close(evaluated(called, inputs), expected, rtol=1e-5, atol=1e-6)


@torch._inductor.config.patch(fallback_random=True)
def test_inductor():
    """It draws numbers of its own, unless told otherwise."""
    make, inputs_of = CASES["multi"]
    function = make()
    called, graphs = compiled(function, backend="inductor", fullgraph=True)
    for images in (5, 6, 30):
        inputs = inputs_of(images)
        expected = evaluated(function, inputs)
        torch.testing.assert_close(evaluated(called, inputs), expected, rtol=1e-6, atol=1e-7)
    assert graphs.frame_count == 2


@torch._functorch.config.patch(enable_autograd_cache=False)
@torch._inductor.config.patch(fx_graph_cache=False)
def test_inductor_at_a_single_score():
    """It compares the sizes of what the op returns with those that it traced."""
    called, _ = compiled(nce_loss, backend="inductor", dynamic=True, fullgraph=True)
    for images in (3, 1):
        inputs = [torch.randn(images, WIDTH) for _ in range(2)]
        expected = evaluated(lambda src, trg: reference.nce_loss(src, trg[:, None]), inputs)
        torch.testing.assert_close(evaluated(called, inputs), expected, rtol=1e-5, atol=1e-6)


def test_a_batch_that_is_marked_dynamic_takes_one_graph():
    called, graphs = compiled(nce_loss, fullgraph=True)
    for images in (8, 6, 30):
        inputs = pair(images)
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        for leaf in leaves:
            torch._dynamo.mark_dynamic(leaf, 0)
        found = called(*leaves)
        assert_equal(
            [*found, *torch.autograd.grad(sum(found), leaves)], evaluated(nce_loss, inputs)
        )
    assert graphs.frame_count == 1


class Exported(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *given):
        return tuple(self.function(*given))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_export_with_any_batch(name, strict):
    make, inputs_of = CASES[name]
    module, inputs = Exported(make()), inputs_of(8)
    batch = torch.export.Dim("batch")
    shapes = tuple({tuple(tensor.shape).index(8): batch} for tensor in inputs)
    program = torch.export.export(module, tuple(inputs), dynamic_shapes=(shapes,), strict=strict)
    for images in (5, 300, 2):
        given = inputs_of(images)
        found = []
        for called in (program.module(), module):
            torch.manual_seed(3)
            found.append(called(*given))
        assert_equal(*found)


NUMBERS = {
    "floats": (20.0, 19.0, 18.5, 5.0, 11.25, 4.0, 100.0, 7.0, 8.0, 9.5, 1e39),
    "a NumPy scalar": tuple(np.float64(value) for value in (20.0, 19.0, 5.0)),
    "a float32 of NumPy": tuple(np.float32(value) for value in (20.0, 18.5)),
    "None": (20.0, None, 5.0, None),
}


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("name", NUMBERS)
def test_a_clip_that_changes(name, options):
    """Right values, and no graph for each of them."""
    src, trg = (tensor.requires_grad_() for tensor in pair(6))
    called, graphs = compiled(lambda clip: nce_loss(src, trg, clip=clip), **options)
    for clip in NUMBERS[name]:
        none = clip is None or clip > 1e30
        results = called(clip), reference.nce_loss(src, trg, clip=None if none else float(clip))
        torch.testing.assert_close(*results)
        grads = [torch.autograd.grad(sum(parts), (src, trg)) for parts in results]
        torch.testing.assert_close(*grads)
    # One for a number, one for any, one for None.
    assert graphs.frame_count <= 4


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_a_schedule_of_a_module(options):
    loss = LossMultiNCE(20.0)
    inputs = CASES["multi"][1](6)
    called, graphs = compiled(loss, **options)
    for step in range(12):
        loss.tclip, loss.reg_weight = 20.0 - 1.5 * step, 0.1 + 0.25 * step
        assert_equal(evaluated(called, inputs), evaluated(loss, inputs))
    assert graphs.frame_count <= 3


def test_weights_of_the_objective_that_change():
    src, trg = pair(6)
    called, graphs = compiled(
        lambda weight: nce_objective(src, trg, mean_sq_weight=weight), fullgraph=True, dynamic=True
    )
    loss, mean_sq = reference.nce_loss(src, trg)
    for weight in (0.5, 0.25, 2.0, 3.5, 0.125, 0.75, 1.5, 4.5, 5.5, 6.5):
        torch.testing.assert_close(called(weight).objective, loss + weight * mean_sq)
    assert graphs.frame_count <= 3


@pytest.mark.parametrize(
    ("clip", "message"),
    [(-1.0, "clip is -1.0; it must be greater than 0"), (1e-154, "clip is 1e-154; it must be")],
)
def test_a_graph_refuses_a_clip_out_of_range(clip, message):
    src, trg = pair(6)
    called, _ = compiled(lambda clip: nce_loss(src, trg, clip=clip))
    for value in (20.0, 19.0):
        called(value)
    for value in (clip, np.float32(clip) if clip == -1.0 else clip):
        with pytest.raises(Exception, match=message):
            called(value)

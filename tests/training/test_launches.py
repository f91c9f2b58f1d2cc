"""How many launches a step takes on a GPU, counted without one."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from amdim_fast.model.residual import op as residual_op
from amdim_fast.model.residual import passes
from amdim_fast.nce import layout, op_kernels, triton_passes
from amdim_fast.training import step as training_step
from amdim_fast.training.recipes import RECIPES
from amdim_fast.training.step import Training, build_model
from tests.nce import launches as counting
from tests.nce.launches import Launches

IMAGES, SIDE = 4, 32
# Says where it is to a profiler, or gives a view.
NO_LAUNCH = ("profiler::_record_function", "aten::_unsafe_view")


@pytest.fixture
def launches(monkeypatch):
    """Kernels of a GPU and products are counted instead of run; the rest runs on the CPU."""
    found = Launches(monkeypatch)

    def counted(name, result=lambda *_: None):
        def launch(*arguments, **options):
            found.counts[name] += 1
            return result(*arguments)

        return launch

    for module in (layout, op_kernels, passes):
        monkeypatch.setattr(module, "resolve_backend", lambda *_: "triton")
    for name in ("write_products", "write_source_gradient", "write_target_gradient"):
        monkeypatch.setattr(triton_passes, name, counted("product"))
    monkeypatch.setattr(passes, "multiply_into", counted("product"))
    new = counted("product", lambda a, b: a.new_empty(len(a), len(b)))
    monkeypatch.setattr(passes, "relu_product", new)
    for name, function in (("forward", residual_op.forward), ("backward", residual_op.backward)):
        monkeypatch.setitem(counting.OPS, f"amdim_fast::residual_{name}", function)
    monkeypatch.setattr(layout, "_layouts", {})
    return found


def step(launches, backend):
    """Launches of the second step of digits by name, views excluded."""
    recipe = replace(RECIPES["digits"], precision="bfloat16")
    training = Training(build_model(recipe, 10), recipe, 4000, seed=0)
    training.model.encoder.backend = backend
    views = torch.randn(2, IMAGES, SIDE, SIDE, 3).bfloat16().movedim(-1, 2)
    labels = torch.arange(IMAGES)
    training.update(views, labels)
    launches.counts.clear()
    with launches:
        training.update(views, labels)
    found = Counter(
        {name: n for name, n in launches.counts.items() if not name.startswith(NO_LAUNCH)}
    )
    found["aten::convolution_backward"] *= 2  # of the input and of the weight
    return found


def test_a_step_of_digits_takes_half_of_the_launches_of_plain_layers_view_by_view(
    launches, monkeypatch
):
    ours = step(launches, "triton")
    assert ours["residual_shortcut"] == ours["residual_shortcut_backward"] == 5
    assert ours.total() <= 260, ours
    plain = step(launches, "torch")
    monkeypatch.setattr(
        training_step,
        "encode_views",
        lambda encoder, views: tuple(encoder(view) for view in views.unbind(0)),
    )
    by_view = step(launches, "torch")
    assert ours.total() < plain.total() < by_view.total()
    assert ours.total() <= by_view.total() / 2, (ours, by_view)


def test_an_operation_more_is_noticed(launches, monkeypatch):
    before = step(launches, "triton").total()
    given = passes.shortcut
    monkeypatch.setattr(passes, "shortcut", lambda *arguments: given(*arguments) + 0)
    assert step(launches, "triton").total() == before + 5

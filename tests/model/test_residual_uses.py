"""Blocks as one op in everything that trains an encoder: the gradients of plain layers."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from amdim_fast.model.encoder import encode_views
from amdim_fast.model.residual import modules, shortcut
from tests.model.gradient_cases import cached, distance, gradients, make_model, make_views

USES = ("views at once", "checkpointed", "micro-batches", "compiled", "distributed")


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def train(use, backend, views, locations):
    """Gradients of one step, and how many rows of layers ran as one op."""
    model = make_model(torch.float32, use_bn=False)
    model.encoder.backend = backend
    encoder = model.encoder
    if use == "micro-batches":
        cached(model, views, locations, 2)
        return gradients(model)
    if use == "checkpointed":
        model.encoder.checkpoint_blocks = True
    elif use == "compiled":
        encoder = torch.compile(model.encoder, backend="aot_eager", fullgraph=True)
    elif use == "distributed":
        encoder = DistributedDataParallel(model.encoder, gradient_as_bucket_view=True)
    features = encode_views(encoder, views)
    model.objective(*features, locations=locations).loss.backward()
    return gradients(model)


@pytest.mark.parametrize("use", USES)
def test_gradients_are_those_of_plain_layers(use, group, monkeypatch):
    # Few programs to interpret; tests of the kernels have the tiles of GPUs.
    monkeypatch.setattr(shortcut, "PIXELS", 1024)
    views, locations = make_views(4 if use == "micro-batches" else 2, torch.float32)
    right = train(use, "torch", views, locations)
    calls, op = [], modules.residual_layers
    if use != "compiled":

        def counted(*arguments, **options):
            calls.append(1)
            return op(*arguments, **options)

        monkeypatch.setattr(modules, "residual_layers", counted)
    found = train(use, "triton", views, locations)
    assert distance(found, right) < 1e-4
    # A stem's layer, four blocks, the last layer and two heads; heads are not checkpointed.
    expected = {"checkpointed": 8 + 6, "micro-batches": 8 * 2 * 2 * 2, "compiled": 0}
    assert len(calls) == expected.get(use, 8)

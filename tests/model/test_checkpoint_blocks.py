"""Residual blocks computed again in the backward."""

import contextlib

import pytest
import torch

from tests.model.gradient_cases import gradients, make_model, make_views, plain, statistics


@pytest.mark.parametrize("frozen", [False, True])
def test_checkpointed_blocks_change_nothing_but_are_run_twice(frozen):
    views, locations = make_views(4)
    models, runs = [], []
    for checkpoint_blocks in (False, True):
        model = make_model(frozen=frozen)
        model.encoder.checkpoint_blocks = checkpoint_blocks
        calls = []
        model.encoder.layer_list[2].register_forward_pre_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        loss = model(*views, locations=locations).loss
        loss.backward(retain_graph=True)
        runs.append(len(calls))
        loss.backward()
        models.append(model)
    assert runs == [2, 4]
    truth, found = map(gradients, models)
    assert all(torch.equal(found[name], truth[name]) for name in truth)
    buffers = [dict(model.named_buffers()) for model in models]
    assert all(torch.equal(buffers[1][name], buffers[0][name]) for name in buffers[0])
    assert statistics(models[1])[1] == ({0} if frozen else {2})


def test_an_update_by_recomputation_is_noticed(monkeypatch):
    monkeypatch.setattr("amdim_fast.model.encoder.BuffersKept", lambda _: contextlib.nullcontext())
    model = make_model()
    model.encoder.checkpoint_blocks = True
    plain(model, *make_views(4), (4,))
    assert statistics(model)[1] == {2, 4}

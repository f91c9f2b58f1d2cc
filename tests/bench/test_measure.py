"""Clocks of a GPU and its graphs, and errors; what needs no GPU with an invented driver."""

import ctypes
import time

import pytest
import torch

from amdim_fast import last_plan
from amdim_fast.bench import graphs, measure
from amdim_fast.bench.inputs import forward_backward, make_inputs, our_losses


def test_errors_are_relative_to_the_norm_of_the_truth():
    truth = [torch.tensor([3.0, 4.0], dtype=torch.float64), torch.tensor([2.0]).double()]
    found = [torch.tensor([3.0, 4.5]), torch.tensor([2.0])]
    assert measure.relative_errors(found, truth) == pytest.approx([0.1, 0.0])


def test_time_of_the_host_begins_when_the_device_is_idle(monkeypatch):
    order = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("idle"))
    clock = iter([1.0, 1.002])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: order.append("clock") or next(clock))
    assert measure.host_milliseconds(lambda: order.append("call")) == pytest.approx(2.0)
    assert order == ["idle", "clock", "call", "clock"]


class Driver:
    """Answers with a status and a number of nodes."""

    def __init__(self, status):
        self.status = status

    def cuGraphGetNodes(self, handle, nodes, count):  # noqa: N802
        assert (handle.value, nodes) == (7, None)
        ctypes.cast(count, ctypes.POINTER(ctypes.c_size_t))[0] = 21
        return self.status


class Graph:
    def raw_cuda_graph(self):
        return 7


def test_launches_are_what_the_driver_counts(monkeypatch):
    monkeypatch.setattr(graphs, "_driver", lambda: Driver(0))
    assert graphs.launches(Graph()) == 21
    monkeypatch.setattr(graphs, "_driver", lambda: Driver(4))
    with pytest.raises(RuntimeError, match="failed with status 4"):
        graphs.launches(Graph())


@pytest.mark.gpu
def test_a_graph_repeats_the_call_and_counts_its_launches():
    total = torch.zeros(1000, device="cuda")

    def call():
        for _ in range(3):
            total.add_(1.0)

    graph = graphs.captured(call)
    before = total.clone()
    graph.replay()
    assert torch.equal(total, before + 3.0)
    assert graphs.launches(graph) == 3


@pytest.mark.gpu
@pytest.mark.parametrize("objective", [True, False])
@pytest.mark.parametrize("memory_budget", [None, 0])
def test_forward_and_backward_of_the_loss_have_a_graph(objective, memory_budget):
    inputs = make_inputs(64, 128, "cuda", torch.bfloat16)
    loss = our_losses(objective=objective, memory_budget=memory_budget)
    # Results with a graph would keep nodes of the default stream alive.
    expected, found = [tensor.detach() for tensor in forward_backward(loss, inputs)], []

    def call():
        found[:] = forward_backward(loss, inputs)

    graph = graphs.captured(call)
    for tensor in found:
        tensor.detach().zero_()
    graph.replay()
    wide = [tensor.double() for tensor in expected]
    assert max(measure.relative_errors(found, wide)) < 1e-2
    planned = last_plan().launches
    assert planned <= graphs.launches(graph) <= planned + 20


@pytest.mark.gpu
def test_a_call_that_waits_for_the_device_has_no_graph():
    values = torch.ones(10, device="cuda")
    with pytest.raises(RuntimeError):
        graphs.captured(lambda: values.sum().item())
    assert float(values.sum()) == 10.0


@pytest.mark.gpu
def test_an_idle_device_counts_all_of_the_host():
    def slow():
        time.sleep(2e-3)
        return torch.ones(1, device="cuda")

    assert measure.stopwatch("cuda", idle=True)(slow) > 1.9
    assert 1.9 < measure.host_milliseconds(slow) < 50.0

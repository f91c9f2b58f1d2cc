"""Which device is used where none is named, and what is said of devices that are not here."""

import pytest
import torch

from amdim_fast.devices import default_device, describe_device, device_name, find_device


class Cards:
    """Stands in for a machine's GPUs: torch finds ``count``, and computing there may fail."""

    def __init__(self, patch, count, error=None):
        self.tried = []
        self._ones, self._error = torch.ones, error
        patch.setattr(torch.cuda, "is_available", lambda: count > 0)
        patch.setattr(torch.cuda, "device_count", lambda: count)
        patch.setattr(torch, "ones", self.ones)

    def ones(self, *shape, device):
        self.tried.append(device)
        if self._error is not None:
            raise self._error
        return self._ones(*shape)


def test_default_is_cuda_where_there_is_a_gpu(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    cards = Cards(monkeypatch, 2)
    assert default_device() == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert default_device() == "cuda"
    assert cards.tried == ["cuda:0", "cuda:1"]
    none = Cards(monkeypatch, 0)
    assert default_device() == "cpu"
    assert none.tried == []


def test_a_gpu_that_cannot_compute_is_named_and_not_the_default(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    Cards(monkeypatch, 1, RuntimeError("no kernel image is available\nand more"))
    with pytest.warns(
        UserWarning, match=r"^cuda:0 .* \(no kernel image is available\); using cpu$"
    ):
        assert default_device() == "cpu"


def test_none_is_the_default(monkeypatch):
    monkeypatch.setattr("amdim_fast.devices.default_device", lambda: "cuda")
    Cards(monkeypatch, 1)
    assert find_device() == torch.device("cuda")
    assert find_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["mps", "xpu", "meta", "cuda:x", "tpu", ""])
def test_other_devices_are_refused(name):
    with pytest.raises(ValueError, match=f"^device is '{name}'; it must be cpu or cuda, "):
        find_device(name)


def test_missing_gpus_are_refused(monkeypatch):
    Cards(monkeypatch, 0)
    with pytest.raises(
        ValueError, match=r"^device is 'cuda:1', but torch finds no CUDA .* use cpu$"
    ):
        find_device("cuda:1")
    Cards(monkeypatch, 2)
    assert find_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"^device is 'cuda:2'; it must be below cuda:2, "):
        find_device("cuda:2")


def test_a_device_is_described_by_its_name(monkeypatch):
    cpu = describe_device(torch.device("cpu"))
    assert cpu == f"cpu ({device_name('cpu')})"
    assert cpu.endswith(f", {torch.get_num_threads()} threads)")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert describe_device(torch.device("cuda")) == "cuda:3 (card 3)"


@pytest.mark.gpu
def test_the_gpu_here_is_the_default():
    assert default_device() == "cuda"
    assert torch.cuda.get_device_name() in describe_device(find_device("cuda"))

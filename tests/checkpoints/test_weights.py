"""Weights that a model cannot take, and sizes that the weights do not have, are named."""

import tracemalloc

import pytest
import torch

from amdim_fast import AMDIM, CheckpointError, load_checkpoint, save_checkpoint
from tests.checkpoints.cases import small_model, written

NAME = "encoder.layer_list.1.conv1.weight"


def first_nan(value):
    value = value.clone()
    value.flatten()[0] = torch.nan
    return value


FAULTS = {
    "is torch.complex64; it must be": lambda value: value + 1j,
    "is torch.int8; it must be": lambda value: value.to(torch.int8),
    "is torch.float8_e4m3fn; it must be": lambda value: value.to(torch.float8_e4m3fn),
    "is sparse or nested; save it as a dense": lambda value: value.to_sparse(),
    "is quantized; save it as a dense": lambda value: torch.quantize_per_tensor(
        value, 0.1, 0, torch.qint8
    ),
    "has no values (device meta); save": lambda value: value.to("meta"),
    "has shape [2, 2, 1, 1] and fewer values; save": lambda value: torch.ones(1).expand_as(value),
    "has NaN or infinity, so that features would too; use": first_nan,
    "has NaN or infinity": lambda value: value / 0,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("message", FAULTS)
def test_a_weight_that_no_model_can_take_is_named(message, tmp_path):
    state = small_model().state_dict()
    state[NAME] = FAULTS[message](torch.rand(2, 2, 1, 1) + 1)
    path = written(tmp_path, {"model": state})
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert f"{path} holds {NAME}, which {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_complex_counters_are_refused(tmp_path):
    state = small_model().state_dict()
    name = next(name for name in state if name.endswith("num_batches_tracked"))
    state[name] = torch.tensor(1j)
    with pytest.raises(CheckpointError, match=rf"{name}, which is torch\.complex64"):
        load_checkpoint(written(tmp_path, state))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_of_other_widths_is_read(dtype, tmp_path):
    state = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in small_model().state_dict().items()
    }
    model = load_checkpoint(written(tmp_path, {"model": state}))
    assert torch.equal(model.state_dict()[NAME], state[NAME].float())


@pytest.mark.parametrize(
    ("sizes", "found"),
    [({"components": 10**8}, 3), ({"mixture_hidden": 10**8}, 5), ({"n_depth": 10**7}, 1)],
)
def test_sizes_that_a_file_only_claims_take_no_memory(sizes, found, tmp_path):
    path = tmp_path / "mixture.pt"
    model = AMDIM(32, 4, 8, 1, components=3, mixture_hidden=5)
    save_checkpoint(path, model)
    contents = torch.load(path)
    contents["hyperparams"] |= sizes
    torch.save(contents, path)
    tracemalloc.start()
    message = (
        rf"says that \w+ is {next(iter(sizes.values()))}, but its weights are those of {found}"
    )
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_a_size_for_weights_that_are_not_there_names_them(tmp_path):
    path = tmp_path / "plain.pt"
    save_checkpoint(path, AMDIM(32, 4, 8, 1))
    contents = torch.load(path)
    contents["hyperparams"] |= {"components": 10**8, "mixture_hidden": None, "tau": 5.0}
    torch.save(contents, path)
    with pytest.raises(CheckpointError, match=r"missing: mixture\.linear_1\.bias"):
        load_checkpoint(path)

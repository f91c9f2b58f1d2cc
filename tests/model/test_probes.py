from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from amdim_fast.model.probes import Probes, probe_loss

GOLDEN = Path(__file__).parents[1] / "golden"
PREFIX = "evaluator."
GOLDEN_TOLERANCE = 1e-6  # measured 6e-8


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_public_weights_give_public_logits(size):
    file = torch.load(GOLDEN / f"amdim_public_{size}.pth", weights_only=True)
    probes = Probes(file["hyperparams"]["n_rkhs"], file["hyperparams"]["n_classes"])
    state = {k[len(PREFIX) :]: v for k, v in file["model"].items() if k.startswith(PREFIX)}
    probes.load_state_dict(state)
    assert list(probes.state_dict()) == list(state)
    data = np.load(GOLDEN / f"encoder_{size}.npz")
    with torch.no_grad():
        output = probes.eval()(torch.from_numpy(data["r1"]))
    for name in ("logits_mlp", "logits_linear"):
        error = (getattr(output, name) - torch.from_numpy(data[name])).abs().max()
        assert error < GOLDEN_TOLERANCE
    swapped = (output.logits_mlp - torch.from_numpy(data["logits_linear"])).abs().max()
    assert swapped > 1e3 * GOLDEN_TOLERANCE


def test_no_gradient_reaches_the_features():
    probes = Probes(6, 3)
    r1 = torch.randn(5, 6, 1, 1, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0, 1])
    output = probes(r1)
    (probe_loss(output.logits_mlp, labels) + probe_loss(output.logits_linear, labels)).backward()
    assert r1.grad is None
    for name, parameter in probes.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_dropout_is_in_the_mlp_alone():
    probes = Probes(6, 3)
    r1 = torch.randn(8, 6)
    first, second = probes(r1), probes(r1)
    assert torch.equal(first.logits_linear, second.logits_linear)
    assert not torch.equal(first.logits_mlp, second.logits_mlp)
    dropouts = [m.p for m in probes.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts == [0.2, 0.2]


def test_takes_flat_and_low_precision_features():
    probes = Probes(6, 3).eval()
    r1 = torch.randn(4, 6, 1, 1)
    assert torch.equal(probes(r1).logits_mlp, probes(r1.flatten(1)).logits_mlp)
    assert probes(r1.bfloat16()).logits_linear.dtype == torch.float32
    assert probes(r1[:1]).logits_mlp.shape == (1, 3)


def test_loss_is_its_formula():
    logits = 12 * torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 3, 2, 1, 0, 0, 2])
    scores = 10 * np.tanh(logits.numpy() / 10)
    log_prob = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    expected = -log_prob[np.arange(7), labels].mean() + 1e-3 * (logits.numpy() ** 2).mean()
    assert probe_loss(logits, labels).item() == pytest.approx(expected, rel=1e-6)
    assert probe_loss(logits.bfloat16(), labels).dtype == torch.float32
    plain = F.cross_entropy(logits, labels).item()
    assert abs(plain - expected) > 0.1


def test_loss_leaves_out_unlabelled_rows():
    logits = torch.randn(4, 3)
    penalty = 1e-3 * logits.square().mean()
    some = probe_loss(logits, torch.tensor([1, -1, 2, -1])) - penalty
    only = logits[[0, 2]]
    expected = probe_loss(only, torch.tensor([1, 2])) - 1e-3 * only.square().mean()
    torch.testing.assert_close(some, expected)
    torch.testing.assert_close(probe_loss(logits, torch.full((4,), -1)), penalty)


def test_losses_of_several_probes_are_those_of_each():
    logits, labels = (
        5 * torch.randn(2, 6, 3, dtype=torch.float64),
        torch.tensor([1, -1, 2, 0, 0, 1]),
    )
    for count in (None, torch.tensor(4.0)):
        found = probe_loss(logits, labels, count)
        each = torch.stack([probe_loss(part, labels, count) for part in logits])
        torch.testing.assert_close(found, each)
    with pytest.raises(ValueError, match=r"\[P, B, n_classes\], and \[B\]"):
        probe_loss(logits, labels[:2])


def test_wrong_inputs_are_named():
    probes = Probes(6, 3)
    for shape in ((4, 5), (4, 6, 2, 1), (6,)):
        with pytest.raises(ValueError, match=r"r1 has shape .* \[B, 6, 1, 1\] or \[B, 6\]"):
            probes(torch.zeros(shape))
    with pytest.raises(ValueError, match="r1 has 1 rows; it must have 2 or more in training"):
        probes(torch.zeros(1, 6))
    with pytest.raises(ValueError, match="n_classes is 0; it must be a whole number, 1 or more"):
        Probes(6, 0)
    with pytest.raises(ValueError, match=r"logits have shape \[4, 3\] and labels \[5\]"):
        probe_loss(torch.zeros(4, 3), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"labels are torch\.float32"):
        probe_loss(torch.zeros(4, 3), torch.zeros(4))

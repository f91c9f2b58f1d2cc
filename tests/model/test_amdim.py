import pytest
import torch

from amdim_fast.model.amdim import AMDIM
from amdim_fast.model.probes import Probes
from amdim_fast.nce.reference_mixture import multiscale_mixture

LOCATIONS = (torch.tensor([0, 7, 24, 3]), torch.tensor([12, 1, 5, 20]))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def views(batch=4, size=32, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, channels, size, size, generator=generator)


def nce(src, trg, clip):
    """Mean loss and mean squared raw score of one cost, straight from the formula."""
    raw = torch.einsum("bd,ndl->bnl", src, trg.flatten(2)) / src.shape[1] ** 0.5
    score = clip * torch.tanh(raw / clip)
    own = torch.eye(len(src), dtype=torch.bool)
    others = score.masked_fill(own[:, :, None], -torch.inf).flatten(1)
    positive = score[own]
    everything = torch.logaddexp(positive, others.logsumexp(1, keepdim=True))
    return (everything - positive).mean(), raw.square().mean()


def test_output_is_the_objective_of_both_views():
    model = AMDIM(32, 3, 12, 1, tclip=7.0, reg_weight=0.3).eval()
    x1, x2 = views()
    output = model(x1, x2, locations=LOCATIONS)
    a, b = model.encoder(x1), model.encoder(x2)
    rows = torch.arange(4)
    picked_a = a.r5.flatten(2)[rows, :, LOCATIONS[0]]
    picked_b = b.r5.flatten(2)[rows, :, LOCATIONS[1]]
    pairs = [
        (a.r1.flatten(1), b.r5), (b.r1.flatten(1), a.r5),
        (a.r1.flatten(1), b.r7), (b.r1.flatten(1), a.r7),
        (picked_a, b.r5), (picked_b, a.r5),
    ]  # fmt: skip
    costs = [nce(src, trg, 7.0) for src, trg in pairs]
    losses = [(costs[i][0] + costs[i + 1][0]) / 2 for i in (0, 2, 4)]
    penalty = 0.5 * 0.3 * sum(mean_sq for _, mean_sq in costs)
    ours = (output.loss_1t5, output.loss_1t7, output.loss_5t5, output.lgt_reg)
    for value, expected in zip(ours, [*losses, penalty], strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.loss, sum(losses) + penalty, rtol=1e-5, atol=1e-6)
    assert torch.equal(output.r1_x1, a.r1)
    assert torch.equal(output.r1_x2, b.r1)


def test_each_view_has_its_own_batch_statistics():
    model = AMDIM(32, 3, 12, 1)
    x1, x2 = views()
    output = model(x1, 3 * x2 + 1)
    for r1 in (output.r1_x1, output.r1_x2):
        torch.testing.assert_close(r1.mean((0, 2, 3)), torch.zeros(12), atol=1e-5, rtol=0)
    assert int(model.encoder.rkhs_block_5.bn_out.bn.num_batches_tracked) == 2


def test_training_reaches_the_encoder_and_never_the_probes():
    model = AMDIM(32, 3, 12, 2, n_classes=5)
    for parameter in model.encoder.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    output = model(*views())
    output.loss.backward()
    for name, parameter in model.encoder.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
    assert all(parameter.grad is None for parameter in model.evaluator.parameters())
    model.zero_grad()
    sum(logits.square().sum() for logits in model.evaluator(output.r1_x1)).backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert all(parameter.grad is not None for parameter in model.evaluator.parameters())


def test_a_few_steps_lower_the_loss():
    model = AMDIM(32, 4, 16, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    (x,) = views(16)[:1]
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = model(x, x).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def test_draws_with_the_generator_given():
    model = AMDIM(32, 2, 8, 1).eval()
    x1, x2 = views()

    def loss(seed):
        return model(x1, x2, generator=torch.Generator().manual_seed(seed)).loss_5t5

    assert torch.equal(loss(3), loss(3))
    assert not torch.equal(loss(3), loss(4))


def test_hyperparameters_are_plain_and_follow_the_probes():
    model = AMDIM(64, 2, 8, 3, use_bn=True, in_channels=1, tclip=11.0, reg_weight=0.04)
    assert model.evaluator is None
    assert model.hyperparams == {
        "ndf": 2,
        "n_classes": None,
        "n_rkhs": 8,
        "tclip": 11.0,
        "n_depth": 3,
        "encoder_size": 64,
        "use_bn": True,
        "in_channels": 1,
        "reg_weight": 0.04,
    }
    model.evaluator = Probes(8, 6)
    assert model.hyperparams["n_classes"] == 6
    assert (model.g2l_loss.tclip, model.g2l_loss.reg_weight) == (11.0, 0.04)
    assert AMDIM(32, 2, 8, 1).g2l_loss.tclip == 20.0


def test_views_that_disagree_are_named():
    x1, x2 = views()
    with pytest.raises(ValueError, match=r"x1 has shape \[4, .*x2 \[3, .*equal"):
        AMDIM(32, 2, 8, 1)(x1, x2[:3])


def test_components_take_the_place_of_the_global_feature():
    model = AMDIM(
        32, 3, 12, 1, tclip=7.0, reg_weight=0.3, components=3, mixture_hidden=5, tau=2.0, alpha=0.1
    )
    model.eval()
    x1, x2 = views()
    output = model(x1, x2, locations=LOCATIONS)
    a, b = model.encoder(x1), model.encoder(x2)
    expected = multiscale_mixture(
        (model.mixture(a.r1), a.r5, a.r7), (model.mixture(b.r1), b.r5, b.r7), LOCATIONS,
        tau=2.0, alpha=0.1, clip=7.0, reg_weight=0.3,
    )  # fmt: skip
    torch.testing.assert_close(torch.stack(output[:4]), torch.stack(expected))
    torch.testing.assert_close(output.loss, sum(expected))
    assert torch.equal(output.r1_x1, a.r1)
    assert output.usage.shape == (3,)
    output.loss.backward()
    assert all(parameter.grad.any() for parameter in model.mixture.parameters())
    assert model.hyperparams | {"components": 3, "mixture_hidden": 5, "tau": 2.0, "alpha": 0.1} == (
        model.hyperparams
    )
    plain = AMDIM(32, 3, 12, 1)
    assert plain.mixture is None
    new = model.state_dict().keys() - plain.state_dict().keys()
    assert {name.split(".")[0] for name in new} == {"mixture"}

"""``MixtureHead`` and ``MixtureNCELoss`` against the float64 reference, and their limits."""

import math

import pytest
import torch

from amdim_fast import LossMultiNCE, last_plan
from amdim_fast.nce import plan
from amdim_fast.nce import reference_mixture as reference
from amdim_fast.nce.mixture import MixtureHead, MixtureNCELoss, responsibilities
from tests.nce.cases import lower_floors
from tests.nce.test_losses import draw, maps


@pytest.fixture
def small_work(monkeypatch):
    lower_floors(monkeypatch, least=1024)


PARTS = ("loss_1t5", "loss_1t7", "loss_5t5", "lgt_reg")


def inputs(components=3, images=7, width=12, sides=(1, 5, 7), dtype=torch.float64):
    found = maps(images, width, sides, dtype)
    for index in (0, 3):
        found[index] = torch.randn(components, images, width, dtype=dtype).requires_grad_()
    return found


def gradients(outputs, tensors, weights=(1.0, 1.0, 1.0, 1.0)):
    total = sum(weight * output for weight, output in zip(weights, outputs, strict=True))
    return torch.autograd.grad(total, tensors)


def assert_close(found, expected, tolerance=1e-10):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("budget", [0, 20_000, None])
@pytest.mark.usefixtures("small_work")
@pytest.mark.parametrize(("tau", "alpha"), [(1.0, 1.0), (3.0, 0.1), (0.0, 0.5)])
@pytest.mark.parametrize("clip", [5.0, 100.0, None])
@pytest.mark.parametrize(
    ("components", "images", "width", "sides"),
    [(3, 7, 12, (1, 5, 7)), (2, 1, 3, (1, 2, 3)), (1, 2, 1, (1, 4, 1))],
)
def test_equals_reference(components, images, width, sides, clip, tau, alpha, budget):
    tensors = inputs(components, images, width, sides)
    locations = draw(images, sides[1] ** 2)
    module = MixtureNCELoss(tau, alpha, clip, 0.04, memory_budget=budget)
    ours = module(*tensors, locations=locations)[:4]
    truth = reference.multiscale_mixture(
        tuple(tensors[:3]), tuple(tensors[3:]), locations, tau=tau, alpha=alpha, clip=clip,
        reg_weight=0.04,
    )  # fmt: skip
    assert_close(ours, truth)
    weights = torch.randn(4).tolist()
    assert_close(gradients(ours, tensors, weights), gradients(truth, tensors, weights))


def test_one_component_is_the_plain_loss():
    tensors = inputs(components=1)
    locations = draw(7, 25)
    plain = [tensor[0] if tensor.dim() == 3 else tensor for tensor in tensors]
    ours = MixtureNCELoss(tau=2.0, alpha=0.7)(*tensors, locations=locations)[:4]
    expected = LossMultiNCE()(*plain, locations=locations)
    assert_close(ours, expected, 1e-12)
    assert_close(gradients(ours, tensors), gradients(expected, tensors), 1e-12)


def test_equal_components_add_only_the_entropy():
    one = inputs(components=1)
    many = [tensor.expand(4, -1, -1) if tensor.dim() == 3 else tensor for tensor in one]
    locations = draw(7, 25)
    alone, together = (
        MixtureNCELoss(tau=2.0, alpha=0.7)(*tensors, locations=locations) for tensors in (one, many)
    )
    gain = 0.7 * math.log(4)
    assert together.loss_1t5.item() == pytest.approx(alone.loss_1t5.item() - gain, rel=1e-12)
    assert together.loss_1t7.item() == pytest.approx(alone.loss_1t7.item() - gain, rel=1e-12)
    assert together.lgt_reg.item() == pytest.approx(alone.lgt_reg.item(), rel=1e-12)
    assert together.entropy.item() == pytest.approx(math.log(4))


def test_gradient_through_the_posterior_vanishes_where_alpha_is_one_over_tau():
    components = torch.randn(3, 6, 8, dtype=torch.float64, requires_grad=True)
    trg = torch.randn(6, 4, 8, dtype=torch.float64, requires_grad=True)

    def both(tau, alpha):
        attached, _, q = reference.mixture_loss(components, trg, tau=tau, alpha=alpha)
        detached, _, _ = reference.mixture_loss(
            components, trg, tau=tau, alpha=alpha, posterior=q.detach()
        )
        return [torch.autograd.grad(loss, (components, trg)) for loss in (attached, detached)]

    assert_close(*both(2.5, 0.4), 1e-12)
    attached, detached = both(2.5, 0.8)
    assert (attached[0] - detached[0]).norm() > 1e-3 * attached[0].norm()


def test_permuted_components():
    tensors = inputs(components=4)
    locations = draw(7, 25)
    order = torch.tensor([2, 0, 3, 1])
    permuted = [tensor[order] if tensor.dim() == 3 else tensor for tensor in tensors]
    module = MixtureNCELoss(tau=2.0, alpha=0.2)
    ours, other = (module(*given, locations=locations) for given in (tensors, permuted))
    assert_close(ours[:5], other[:5], 1e-12)
    assert_close([ours.usage[order]], [other.usage], 1e-12)


def test_limits_of_tau():
    """At 0 all components share alike; at large tau the best takes all."""
    tensors = inputs(components=3)
    locations = draw(7, 25)
    scores = reference.nce_log_prob(
        tensors[0], reference.flatten_map(tensors[5]), clip=10.0
    ).log_prob
    back = reference.nce_log_prob(tensors[3], reference.flatten_map(tensors[2]), clip=10.0).log_prob
    cold = MixtureNCELoss(tau=1e7, alpha=0.5)(*tensors, locations=locations)
    expected = -0.5 * (scores.amax(0).mean() + back.amax(0).mean())
    assert cold.loss_1t7.item() == pytest.approx(expected.item(), rel=1e-9)
    assert cold.entropy.item() < 1e-3
    gradient = gradients(cold[:4], tensors)
    assert all(tensor.isfinite().all() for tensor in gradient)
    hot = MixtureNCELoss(tau=0.0, alpha=0.5)(*tensors, locations=locations)
    expected = -0.5 * (scores.mean() + back.mean()) - 0.5 * math.log(3)
    assert hot.loss_1t7.item() == pytest.approx(expected.item(), rel=1e-12)
    assert hot.usage_entropy.item() == pytest.approx(math.log(3))


def test_usage_and_entropy_are_of_the_posterior_and_detached():
    tensors = inputs(components=3)
    output = MixtureNCELoss(tau=2.0)(*tensors, locations=draw(7, 25))
    posteriors = [
        reference.mixture_loss(src, reference.flatten_map(trg), tau=2.0, alpha=0.5, clip=10.0)[2]
        for src, trg in ((tensors[0], tensors[5]), (tensors[3], tensors[2]))
    ]
    q = torch.stack(posteriors, 1)
    assert_close([output.usage], [q.mean(dim=(1, 2, 3))])
    assert_close([output.entropy], [-(q * q.log()).sum(0).mean()])
    assert not output.usage.requires_grad
    assert not output.entropy.requires_grad
    assert_close([responsibilities(torch.log(q), 1.0)], [q])


def test_collapsed_usage_has_no_entropy():
    """Component 0 points at its image's locations, the others nowhere."""
    own = torch.eye(7)
    feature_map = own[:, :, None, None].expand(7, 7, 7, 7)
    components = torch.stack([20 * own, 0 * own, 0 * own])
    output = MixtureNCELoss(tau=1.0)(*2 * [components, feature_map, feature_map])
    assert output.usage[0].item() > 0.95
    assert output.usage_entropy.item() < 0.2


def test_one_call_of_four_pairings():
    MixtureNCELoss()(*inputs(dtype=torch.float32))
    assert len(last_plan().pairings) == 4


@pytest.mark.parametrize("budget", [2**19, 2**21])
def test_budget_bounds_what_is_kept(monkeypatch, budget):
    lower_floors(monkeypatch)
    monkeypatch.setattr(plan, "PREFERRED_BLOCK_BYTES", 2**18)
    tensors = inputs(components=4, images=32, dtype=torch.float32)
    MixtureNCELoss(memory_budget=budget)(*tensors)
    assert 0 < last_plan().kept_bytes + last_plan().work_bytes <= budget
    assert (last_plan().kept_bytes > 0) == (budget > 2**20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_is_eager(dtype):
    head = MixtureHead(12, 3).to(dtype)
    module = MixtureNCELoss(tau=2.0, alpha=0.3)
    tensors = maps(dtype=dtype)
    locations = draw(7, 25)

    def step(r1_x1, r5_x1, r7_x1, r1_x2, r5_x2, r7_x2):
        return module(head(r1_x1), r5_x1, r7_x1, head(r1_x2), r5_x2, r7_x2, locations=locations)

    eager = step(*tensors)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(*tensors)
    assert_close(compiled, eager, 1e-6)
    assert_close(gradients(compiled[:4], tensors), gradients(eager[:4], tensors), 1e-2)


def test_autocast_gives_float32_losses_and_components_of_the_features_type():
    head = MixtureHead(12, 3)
    tensors = maps(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        components = head(tensors[0]), head(tensors[3])
        output = MixtureNCELoss()(components[0], *tensors[1:3], components[1], *tensors[4:])
    assert {component.dtype for component in components} == {torch.float32}
    assert {value.dtype for value in output} == {torch.float32}
    sum(output[:4]).backward()
    assert head.linear_2.weight.grad.any()


def test_head_starts_near_the_identity_with_different_components():
    head = MixtureHead(256, 4, 512)
    r1 = torch.randn(64, 256, 1, 1)
    deviation = head(r1) - r1.flatten(1)
    assert deviation.shape == (4, 64, 256)
    assert deviation.std().item() == pytest.approx(0.1, rel=0.1)
    correlation = torch.corrcoef(deviation.flatten(1).detach())
    assert (correlation - torch.eye(4)).abs().max() < 0.2


def test_head_is_one_hidden_layer_and_a_residual():
    head = MixtureHead(5, 3, 7).double()
    r1 = torch.randn(4, 5, dtype=torch.float64)
    weight = head.linear_2.weight.view(3, 5, 7)
    hidden = (r1 @ head.linear_1.weight.T + head.linear_1.bias).clamp_min(0)
    for k in range(3):
        expected = r1 + hidden @ weight[k].T + head.linear_2.bias[5 * k : 5 * k + 5]
        torch.testing.assert_close(head(r1)[k], expected)


def test_components_part_while_training():
    """Each map has two kinds of locations; each component learns to explain one of them."""
    first, second = torch.randn(2, 32, 16)
    r1 = torch.cat([first, second], 1)
    kinds = torch.stack([first + second, first - second], 2).repeat(2, 1, 2)[:32]
    feature_map = torch.cat([kinds, -kinds], 1).unflatten(2, (2, 2))
    head = MixtureHead(32, 2)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    module = MixtureNCELoss(tau=4.0)
    found = []
    for _ in range(150):
        components = head(r1)
        found.append(module(components, *2 * [feature_map], components, *2 * [feature_map]))
        optimizer.zero_grad()
        (found[-1].loss_1t5 + found[-1].loss_1t7).backward()
        optimizer.step()
    assert found[-1].entropy < 0.5 * found[0].entropy
    assert found[-1].usage_entropy > 0.5 * math.log(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": -1.0}, "tau is -1.0"),
        ({"tau": math.nan}, "tau is nan"),
        ({"alpha": math.inf}, "alpha is inf"),
        ({"tau": 0.0}, "give an alpha"),
        ({"tclip": 0.0}, "tclip is 0.0"),
        ({"reg_weight": -0.1}, "reg_weight is -0.1"),
        ({"backend": "numpy"}, "backend is 'numpy'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        MixtureNCELoss(**options)


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t[0], r"components_x1 has shape \[7, 12\]; it must be \[K, B, D\]"),
        (3, lambda t: t[:2], r"components_x2 has shape \[2, 7, 12\] and components_x1"),
        (3, lambda t: t[:, :, :4], "must be equal"),
        (2, lambda t: t[:, :4], r"r7_x1 has shape \[7, 49, 4\] and components_x1"),
        (4, lambda t: t[:3], "r5_x2 has 3 images and components_x1 7"),
        (1, lambda t: t.flatten(1), r"r5_x1 has shape \[7, 300\]"),
        (5, lambda t: t.float(), "r7_x2 is torch.float32 and components_x1 is torch.float64"),
        (3, lambda t: t.float(), "components_x2 is torch.float32"),
    ],
)
def test_bad_input(index, change, message):
    tensors = inputs()
    tensors[index] = change(tensors[index])
    with pytest.raises((ValueError, TypeError), match=message):
        MixtureNCELoss()(*tensors)


@pytest.mark.parametrize("sizes", [(0, 2), (4, 0), (4, 2, 0), (4, 2.0), (4, True)])
def test_bad_head(sizes):
    with pytest.raises(ValueError, match="it must be a whole number, 1 or more"):
        MixtureHead(*sizes)


def test_head_names_a_width_that_does_not_fit():
    with pytest.raises(ValueError, match="r1 has width 5; it must be 4"):
        MixtureHead(4, 2)(torch.randn(3, 5))

"""Products of limbs against float64: no worse than twice float32's, or by a stated bound."""

import pytest
import torch

from amdim_fast.nce import limbs, parts, products

ROWS, TARGETS, WIDTH = 160, 700, 520
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FEATURES = (
    "normal",
    "positive",
    "scaled",
    "sparse",
    "tiny",
    "large",
    "spread",
    "denormal",
    "zeros",
    "huge",
)


def scales(count, decades=19):
    """Powers of ten over 38 decades, in a column; products of two remain finite."""
    return 10 ** (decades * (2 * torch.rand(count, 1, dtype=torch.float64) - 1))


def features(case):
    src, trg = torch.randn(ROWS, WIDTH), torch.randn(TARGETS, WIDTH)
    if case == "positive":
        src, trg = src.abs(), trg.abs()
    elif case == "scaled":
        src, trg = (scales(ROWS, 18) * src).float(), (scales(TARGETS, 18) * trg).float()
    elif case == "sparse":
        src, trg = (
            (scales(ROWS, 18) * src.relu()).float(),
            (scales(TARGETS, 18) * trg.relu()).float(),
        )
    elif case == "tiny":
        src, trg = 1e-20 * src, 1e-20 * trg
    elif case == "large":
        src, trg = 1e20 * src, 1e15 * trg
    elif case == "spread":
        src, trg = (tensor * 10 ** (-10 * torch.rand_like(tensor)) for tensor in (src, trg))
    elif case == "denormal":
        src = 1e-40 * src
    elif case == "zeros":
        src[::3], trg[::2] = 0, 0
    elif case == "huge":
        trg[7, 9] = 1e18
    return src, trg


def weights(case):
    """Gradients of scores [ROWS, TARGETS]: a softmax, of rows of very different weight, or less."""
    grad = torch.softmax(4 * torch.randn(ROWS, TARGETS), 1)
    if case == "gradient":
        grad *= torch.rand(ROWS, 1)
        own = torch.arange(ROWS)
        grad[own, own] -= grad.sum(1)
    elif case == "scaled":
        grad = (scales(ROWS) * grad).float()
    elif case == "one-hot":
        grad = torch.softmax(1e3 * torch.randn(ROWS, TARGETS), 1) * torch.rand(ROWS, 1)
    return grad


def scores(src, trg):
    out = torch.empty(len(src), len(trg), device=src.device)
    limbs.multiply_rows_into(out, limbs.split(src), limbs.split(trg))
    return out


def weighed(weight, rows):
    out = torch.empty(len(weight), rows.shape[1], device=rows.device)
    limbs.weigh_rows_into(out, weight, limbs.split(rows))
    return out


def score_errors(value, src, trg):
    """Of scores over both norms: root mean square, worst row and worst column."""
    src, trg = src.double(), trg.double()
    norms = [tensor.norm(dim=1).clamp_min(1e-300) for tensor in (src, trg)]
    error = (value.double() - src @ trg.t()) / norms[0][:, None] / norms[1]
    square = error.square()
    return [float(m.max().sqrt()) for m in (square.mean(), square.mean(1), square.mean(0))]


def errors(value, weight, rows):
    """Of the tensor over its norm; of rows over those of their terms' magnitudes: mean, worst."""
    weight, rows = weight.double(), rows.double()
    truth, bound = weight @ rows, weight.abs() @ rows.abs()
    error = value.double() - truth
    of_rows = error.norm(dim=1) / bound.norm(dim=1).clamp_min(1e-300)
    return [float(e) for e in (error.norm() / truth.norm(), of_rows.mean(), of_rows.max())]


def check_twice(found, baseline, margin=0.0):
    assert all(x <= 2 * y + margin for x, y in zip(found, baseline, strict=True)), (found, baseline)


@pytest.mark.parametrize("case", FEATURES)
def test_scores_are_no_worse_than_twice_float32(case):
    src, trg = features(case)
    check_twice(score_errors(scores(src, trg), src, trg), score_errors(src @ trg.t(), src, trg))


def test_outlying_features_keep_the_digits_of_the_others():
    src, trg = features("normal")
    src[:, 1] *= 2.0**16
    trg[:, 2] *= 2.0**16
    check_twice(errors(scores(src, trg), src, trg.t()), errors(src @ trg.t(), src, trg.t()))


# Sums of many terms of one scale; those that few dominate are below.
@pytest.mark.parametrize("case", ["normal", "positive", "tiny", "large", "spread", "zeros"])
@pytest.mark.parametrize("of", ["softmax", "gradient", "scaled"])
def test_gradients_are_no_worse_than_twice_float32(case, of):
    (src, trg), grad = features(case), weights(of)
    found, baseline = errors(weighed(grad, trg), grad, trg), errors(grad @ trg, grad, trg)
    # One row is the norm of the tensor if rows are of very different weight.
    first = 1 if of == "scaled" else 0
    check_twice(found[first:], baseline[first:])
    if of == "softmax":
        grad, rows = grad.t(), src
        check_twice(errors(weighed(grad, rows), grad, rows), errors(grad @ rows, grad, rows))


@pytest.mark.parametrize(
    ("case", "of"), [(case, of) for case in FEATURES for of in ("softmax", "gradient", "one-hot")]
)
def test_sums_that_few_terms_dominate_are_within_the_bound(case, of):
    (src, trg), grad = features(case), weights(of)
    for weight, rows in ((grad, trg), (grad.t(), src)):
        found = errors(weighed(weight, rows), weight, rows)
        baseline = errors(weight @ rows, weight, rows)
        check_twice(found, baseline, margin=2.0**-21)
        check_twice(found[1:2], baseline[1:2], margin=2.0**-23)


def tensor_core_product(out, a, b, *, add=False):
    """As tensor cores of an H100 do it, by Khattak and Mikaitis, arXiv 2512.07004.

    16 products and the sum so far are cut to 2 bits below float32's last of the largest, and their
    sum is cut to float32.
    """

    def cut(value, exponent):
        quantum = torch.exp2(exponent.double())
        return torch.trunc(value / quantum) * quantum

    def exponent(value):
        return torch.where(value == 0, -300, torch.frexp(value).exponent - 1)

    a, b, total = a.double(), b.double(), torch.zeros(out.shape, dtype=torch.float64)
    for left, right in zip(a.split(16, 1), b.split(16), strict=True):
        terms = left[:, :, None] * right
        of_terms = exponent(left)[:, :, None] + exponent(right)
        last = torch.maximum(of_terms.amax(1), exponent(total)) - 25
        total = cut(terms, last[:, None]).sum(1) + cut(total, last)
        total = cut(total, exponent(total) - 23)
    out.copy_(out + total.float() if add else total.float())


def sequential_product(a, b):
    """Rounded to float32 after each term, as float32 units multiply and add."""
    total = torch.zeros(len(a), b.shape[1])
    for left, right in zip(a.double().split(1, 1), b.double().split(1), strict=True):
        total = (total + left * right).float()
    return total


@pytest.mark.parametrize("sign", ["either", "one"])
def test_runs_keep_sums_of_tensor_cores_within_twice_float32(monkeypatch, sign):
    monkeypatch.setattr(products, "multiply_into", tensor_core_product)
    src, trg = torch.randn(24, 2048), torch.randn(24, 2048)
    if sign == "one":
        src, trg = src.abs(), trg.abs()
    baseline = errors(sequential_product(src, trg.t()), src, trg.t())
    check_twice(errors(scores(src, trg), src, trg.t()), baseline)
    monkeypatch.setattr(limbs, "RUN", 2048)
    assert errors(scores(src, trg), src, trg.t())[0] > 2 * baseline[0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("m", [1, 3, 260])
@pytest.mark.parametrize("n", [1, 5, 270])
@pytest.mark.parametrize("k", [1, 7, 600])
def test_any_sizes(device, m, n, k):
    a, b = torch.randn(m, k, device=device), torch.randn(n, k, device=device)
    bound = 2.0**-20 * (a.double().abs() @ b.double().abs().t())
    truth = a.double() @ b.double().t()
    assert ((scores(a, b).double() - truth).abs() <= bound).all()
    assert ((weighed(a, b.t().contiguous()).double() - truth).abs() <= bound).all()


@pytest.mark.parametrize("device", DEVICES)
def test_any_strides_and_parts_of_rows(device, monkeypatch):
    monkeypatch.setattr(parts, "SCALED_PART_BYTES", 4096)
    monkeypatch.setattr(parts, "LIMB_ROWS", 16)
    a = torch.randn(90, 60, device=device).t()[:, ::2]
    b = torch.randn(70, 90, device=device)[:, ::2]
    for out in (
        torch.empty(60, 70, device=device),
        torch.empty(70, 60, device=device).t(),
        torch.empty(60, 140, device=device)[:, ::2],
    ):
        limbs.multiply_rows_into(out, limbs.split(a), limbs.split(b))
        check_twice(errors(out, a, b.t()), errors(a @ b.t(), a, b.t()), margin=2.0**-23)
        for accumulate in (False, True):
            out.fill_(3.0)
            limbs.weigh_rows_into(out, a, limbs.split(b.t()), accumulate=accumulate)
            found = errors(out - 3 * accumulate, a, b.t())
            check_twice(found, errors(a @ b.t(), a, b.t()), margin=2.0**-22)


def test_chunks_accumulate():
    src, grad = features("scaled")[0], weights("softmax")
    out = torch.zeros(TARGETS, WIDTH)
    for rows, part in zip(src.split(100), grad.split(100), strict=True):
        limbs.weigh_rows_into(out, part.t(), limbs.split(rows), accumulate=True)
    baseline = errors(grad.t() @ src, grad.t(), src)
    check_twice(errors(out, grad.t(), src), baseline, margin=2.0**-23)


def test_limbs_are_the_rows():
    src, _ = features("scaled")
    high, low, scale = limbs.split(src)
    found = scale * (high.double() + low.double())
    largest = src.abs().amax(1, keepdim=True).double()
    assert high.dtype == low.dtype == torch.float16
    assert ((found - src).abs() <= 2.0**-23 * src.abs() + 2.0**-39 * largest).all()
    assert (high.float().abs().amax(1) >= 2.0**14).all()
    assert torch.equal(torch.frexp(scale).mantissa, torch.full_like(scale, 0.5))


def test_denormal_rows_are_exact():
    rows = torch.randint(-(2**22), 2**22, (9, 50)) * 2.0**-149
    rows[0] *= 2.0**-10
    high, low, scale = limbs.split(rows)
    assert torch.equal(scale * (high.double() + low.double()), rows.double())


def test_scores_overflow_and_vanish_as_in_float32():
    ends = torch.tensor([[1e20], [1e-20], [3e38], [1e-45], [0.0]])
    assert torch.equal(scores(ends, 1e20 * torch.ones(1, 1)), ends * 1e20)
    expected = (ends.double() * 1e-20).float()
    found = scores(ends, torch.full((1, 1), 1e-20))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=3e-45)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_not_finite_rows_and_columns_stay_so(value):
    src, trg = torch.randn(6, 40), torch.randn(5, 40)
    grad = torch.rand(6, 5)
    src[2, 3] = trg[1, 7] = grad[4, 0] = value
    found = scores(src, trg)
    bad = torch.zeros(6, 5, dtype=torch.bool)
    bad[2], bad[:, 1] = True, True
    assert torch.equal(~found.isfinite(), bad)
    found = weighed(grad, trg)
    assert not found[4].isfinite().any()
    assert not found[:, 7].isfinite().any()
    trg[1, 7] = 0
    assert weighed(grad, trg)[:4].isfinite().all()


def test_large_weights_of_denormal_rows():
    rows = torch.tensor([[2.0**-145, -(2.0**-146)], [1.0, 1.0]])
    weight = torch.tensor([[2.0**100, 2.0**-46 + 2.0**-60]])
    torch.testing.assert_close(weighed(weight, rows), weight @ rows, rtol=1e-6, atol=0)


def test_weighed_rows_that_overflow_are_not_finite():
    found = weighed(torch.tensor([[1e20], [1.0]]), torch.full((1, 2), 1e20))
    assert not found[0].isfinite().any()
    torch.testing.assert_close(found[1], torch.full((2,), 1e20))


@pytest.mark.gpu
@pytest.mark.parametrize("sign", ["either", "one"])
def test_scores_and_gradients_on_a_gpu(sign):
    src, trg = (torch.randn(count, 2048, device="cuda") for count in (2048, 8192))
    if sign == "one":
        src, trg = src.abs(), trg.abs()
    check_twice(errors(scores(src, trg), src, trg.t()), errors(src @ trg.t(), src, trg.t()))
    grad = torch.softmax(4 * torch.randn(2048, 8192, device="cuda"), 1)
    check_twice(errors(weighed(grad, trg), grad, trg), errors(grad @ trg, grad, trg))
    check_twice(
        errors(weighed(grad.t(), src), grad.t(), src), errors(grad.t() @ src, grad.t(), src)
    )

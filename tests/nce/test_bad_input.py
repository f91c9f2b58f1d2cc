"""One sentence for each wrong input: what it was and what it must be."""

from functools import partial

import pytest
import torch

from amdim_fast import LossMultiNCE, nce_log_prob, nce_loss, nce_objective
from amdim_fast.nce import reference


def features(**changes):
    arguments = {"src": torch.randn(4, 8), "trg": torch.randn(4, 3, 8)}
    return arguments | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"src": torch.randn(5, 8)}, ValueError, "trg has 4 images and src 5"),
        ({"src": torch.randn(4, 9)}, ValueError, r"src \[4, 9\]; their last sizes D must agree"),
        ({"src": torch.randn(8)}, ValueError, r"src has shape \[8\]; it must be \[B, D\]"),
        (
            {"trg": torch.randn(8)},
            ValueError,
            r"trg has shape \[8\]; it must be \[B, L, D\], \[B, D",
        ),
        (
            {"src": torch.randn(4, 8).half()},
            TypeError,
            "trg is torch.float32 and src is torch.float16",
        ),
        ({"src": torch.ones(4, 8).long()}, TypeError, "src is torch.int64; it must be float32"),
        ({"trg": torch.ones(4, 3, 8).bool()}, TypeError, "trg is torch.bool; it must be float32"),
        ({"src": [1.0]}, TypeError, "src is a list; it must be a torch.Tensor"),
        ({"trg": torch.randn(4, 3, 8, device="meta")}, ValueError, "trg is on meta and src on cpu"),
        ({"trg": torch.randn(4, 0, 8)}, ValueError, r"trg has shape \[4, 0, 8\]; every size"),
        ({"src": torch.randn(4, 0), "trg": torch.randn(4, 3, 0)}, ValueError, r"\[4, 0\]; every"),
        ({"src": torch.randn(0, 8), "trg": torch.randn(0, 3, 8)}, ValueError, r"\[0, 8\]; every"),
        ({"clip": 0.0}, ValueError, "clip is 0.0; it must be greater than 0"),
        ({"clip": -3.0}, ValueError, "clip is -3.0; it must be greater than 0"),
        ({"clip": float("nan")}, ValueError, "clip is nan; it must be greater than 0"),
        ({"src": torch.randn(4, 8).cfloat()}, TypeError, "src is torch.complex64; it must be"),
        ({"trg": torch.randn(4, 3, 8).to_sparse()}, TypeError, "trg is sparse_coo; it must be d"),
        ({"memory_budget": 2**63}, ValueError, "memory_budget is 9223372036854775808; it must"),
        ({"clip": 1e-154}, ValueError, "clip is 1e-154; it must be 1e-06 or more, or None"),
        ({"clip": 1e-46}, ValueError, "clip is 1e-46; it must be 1e-06 or more, or None"),
        ({"clip": "x"}, TypeError, "clip is 'x', a str; it must be a number, or None"),
        ({"clip": 1j}, TypeError, "clip is 1j, a complex; it must be a number, or None"),
        ({"clip": [5.0]}, TypeError, r"clip is \[5.0\], a list; it must be a number, or None"),
        ({"negatives": "all"}, ValueError, "negatives is 'all'; it must be one of other_images"),
        ({"backend": "cuda"}, ValueError, "backend is 'cuda'; it must be one of auto, torch"),
        (
            {
                "backend": "triton",
                "src": torch.randn(4, 8).double(),
                "trg": torch.randn(4, 3, 8).double(),
            },
            TypeError,
            "src is torch.float64; with backend 'triton' it must be float32",
        ),
        ({"precision": "half"}, ValueError, "precision is 'half'; it must be one of auto, limbs"),
        ({"memory_budget": -1}, ValueError, "memory_budget is -1; it must be a whole number, 0"),
        ({"memory_budget": 1.5}, TypeError, "memory_budget is a float; it must be a whole number"),
        ({"memory_budget": True}, TypeError, "memory_budget is a bool; it must be a whole number"),
        ({"group": object()}, TypeError, "group is a object; it must be a torch.distributed"),
    ],
)
def test_functions(changes, error, message):
    functions = [nce_log_prob, nce_loss, partial(nce_objective, mean_sq_weight=0.1)]
    for function in functions[: 2 if "group" in changes else 3]:
        with pytest.raises(error, match=message) as caught:
            function(**features(**changes))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_weight_of_the_objective(value):
    with pytest.raises(ValueError, match=f"mean_sq_weight is {value}; it must be a finite number"):
        nce_objective(**features(), mean_sq_weight=value)


NAMES = ("r1_x1", "r5_x1", "r7_x1", "r1_x2", "r5_x2", "r7_x2")


def maps(**changes):
    sides = (1, 5, 7) * 2
    arguments = {n: torch.randn(4, 8, s, s) for n, s in zip(NAMES, sides, strict=True)}
    return arguments | changes


ZEROS = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"r7_x2": torch.randn(5, 8, 7, 7)}, ValueError, "r7_x2 has 5 images and r1_x1 4"),
        ({"r5_x1": torch.randn(4, 9, 5, 5)}, ValueError, "r5_x1 has shape .* their last sizes D"),
        (
            {"r5_x1": torch.randn(4, 8)},
            ValueError,
            r"r5_x1 has shape \[4, 8\]; it must be \[B, D, h",
        ),
        ({"r1_x2": torch.randn(4, 8, 2, 2)}, ValueError, r"r1_x2 has shape \[4, 8, 2, 2\]"),
        ({"r7_x1": torch.randn(4, 8, 7, 7).half()}, TypeError, "r7_x1 is torch.float16 and r1_x1"),
        ({"r1_x1": torch.ones(4, 8, 1, 1).int()}, TypeError, "r1_x1 is torch.int32; it must be"),
        ({"r1_x2": torch.randn(4, 8).to_sparse()}, TypeError, "r1_x2 is sparse_coo; it must be"),
        ({"r7_x2": torch.randn(4, 8, 7, 7).cfloat()}, TypeError, "r7_x2 is torch.complex64; it"),
        ({"r7_x1": [1.0]}, TypeError, "r7_x1 is a list; it must be a torch.Tensor"),
        ({"r5_x2": torch.randn(4, 8, 0, 5)}, ValueError, "r5_x2 has shape .* at least 1"),
        ({"locations": (ZEROS, ZEROS + 25)}, ValueError, "locations has an entry outside 0..24"),
        ({"locations": (ZEROS - 1, ZEROS)}, ValueError, "locations has an entry outside 0..24"),
        ({"locations": (ZEROS[:3], ZEROS)}, ValueError, r"locations\[0\] has shape \[3\]; it must"),
        ({"locations": (ZEROS, ZEROS.float())}, TypeError, r"locations\[1\] is torch.float32; it"),
    ],
)
@pytest.mark.parametrize("name", ["forward", "objective"])
def test_loss(name, changes, error, message):
    with pytest.raises(error, match=message) as caught:
        getattr(LossMultiNCE(), name)(**maps(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["forward", "objective"])
def test_generator_for_another_device(name):
    class Elsewhere:
        device = torch.device("cuda:0")

    with pytest.raises(ValueError, match="generator is on cuda:0; it must be on the features'"):
        getattr(LossMultiNCE(), name)(**maps(), generator=Elsewhere())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tclip": 0.0}, ValueError, "tclip is 0.0; it must be greater than 0"),
        ({"tclip": "20"}, TypeError, "tclip is '20', a str; it must be a number, or None"),
        ({"reg_weight": -1.0}, ValueError, "reg_weight is -1.0; it must be a finite number"),
        ({"backend": "cuda"}, ValueError, "backend is 'cuda'; it must be one of auto, torch"),
        ({"group": object()}, TypeError, "group is a object; it must be a torch.distributed"),
    ],
)
def test_loss_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        LossMultiNCE(**arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of the interpreter")
def test_the_interpreter_refuses_bfloat16_products():
    """It made a mean square of 1e19 of features of 0.05. What torch multiplies there is right."""
    src, trg = (0.05 * torch.randn(16, *more, 24).bfloat16() for more in ((), (3,)))
    leaf = src.clone().requires_grad_()
    for given, budget in ((src, 0), (src, None), (leaf, 0)):
        with pytest.raises(
            ValueError,
            match=r"^src is torch\.bfloat16, which Triton's interpreter multiplies wrongly; on a"
            r" CPU, use backend='torch', or float32 or float16$",
        ):
            nce_log_prob(given, trg, backend="triton", memory_budget=budget)
    found = nce_log_prob(leaf, trg, backend="triton")
    truth = reference.nce_log_prob(src.double(), trg.double())
    torch.testing.assert_close(found.log_prob.double(), truth.log_prob, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.mean_sq.double(), truth.mean_sq, rtol=1e-5, atol=0)

"""The augmentation op called directly reads nothing outside its arguments."""

import pytest
import torch

from tests.views.test_op import op_arguments

HOSTILE = [
    [10**12, 8, 8],
    [-(10**12), 8, 8],
    [-1, 8, 8],
    [3 * 3 * 20 * 31 - 191, 8, 8],
    [0, 0, 8],
    [0, 8, -8],
    [0, 21, 8],
    [0, 8, 2**62],
    [2**63 - 1, 8, 8],
]


@pytest.mark.parametrize("row", HOSTILE)
def test_an_image_outside_the_buffer_is_named(row):
    arguments = list(op_arguments(packed=True))
    arguments[1] = arguments[1].clone()
    arguments[1][2] = torch.tensor(row)
    with pytest.raises(RuntimeError, match=r"layout\[2\] is \[.*; it must be offset, height and"):
        torch.ops.amdim_fast.augment(*arguments)


def test_the_last_image_may_end_with_the_buffer():
    arguments = list(op_arguments(packed=True))
    arguments[1] = arguments[1].clone()
    arguments[1][2] = torch.tensor([3 * 3 * 20 * 31 - 192, 8, 8])
    assert torch.ops.amdim_fast.augment(*arguments).isfinite().all()


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, lambda images: images[:0], r"layout\[0\] is .*; it must be offset"),
        (0, lambda images: images.repeat(2)[::2], "images must be one contiguous buffer"),
        (0, lambda images: images.view(3, -1), "images must be one contiguous buffer"),
        (3, lambda table: table.byte(), "table must be float32, float16 or bfloat16"),
        (3, lambda table: table.bool(), "table must be float32, float16 or bfloat16"),
        (3, lambda table: table.double(), "table must be float32, float16 or bfloat16"),
        (3, lambda table: table.int(), "table must be float32, float16 or bfloat16"),
        (3, lambda table: table.to(torch.float8_e4m3fn), "table must be float32, float16 or"),
        (3, lambda table: table.view(-1), r"table must be \[3, 256\], contiguous"),
        (0, lambda images: images.to("meta"), "must be on one device"),
        (1, lambda layout: layout.to("meta"), "must be on one device"),
        (2, lambda params: params.to("meta"), "must be on one device"),
        (3, lambda table: table.to("meta"), "must be on one device"),
    ],
)
def test_the_op_reads_no_hostile_buffer(place, change, message):
    arguments = list(op_arguments(packed=True))
    arguments[place] = change(arguments[place])
    with pytest.raises(RuntimeError, match=message):
        torch.ops.amdim_fast.augment(*arguments)

"""``TwoViews``, ``center_view`` and ``encode`` of arrays, Pillow images and single images."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from amdim_fast import AMDIM, Preprocessing, TwoViews
from amdim_fast.views.params import POLICIES
from amdim_fast.views.preprocessing import center_view

POLICY = POLICIES["stl10"]
OPTIONS = {"resize": 70, "size": 64, "mean": POLICY.mean, "std": POLICY.std}
PIXELS = torch.randint(
    0, 256, (3, 80, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
PICTURES = [Image.fromarray(image.numpy()) for image in PIXELS]
BATCHES = {
    "array": PIXELS.numpy(),
    "read-only array": np.broadcast_to(PIXELS.numpy(), PIXELS.shape),
    "mirrored array": PIXELS.numpy()[:, :, ::-1].copy()[:, :, ::-1],
    "array, channels first": PIXELS.permute(0, 3, 1, 2).numpy(),
    "arrays": list(PIXELS.numpy()),
    "pictures": PICTURES,
    "mixed": (PICTURES[0], PIXELS[1], PIXELS[2].numpy()),
}
SINGLE = {
    "tensor": PIXELS[0],
    "tensor, channels first": PIXELS[0].permute(2, 0, 1),
    "array": PIXELS[0].numpy(),
    "array, channels first": PIXELS[0].permute(2, 0, 1).numpy(),
    "picture": PICTURES[0],
}


def views_of(images):
    return TwoViews("stl10")(images, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def model():
    model = AMDIM(64, 1, 2, 1)
    model.preprocessing = Preprocessing.of(POLICY)
    return model


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", BATCHES)
def test_batches_equal_their_tensors(kind, model):
    assert torch.equal(views_of(BATCHES[kind]), views_of(PIXELS))
    assert torch.equal(center_view(BATCHES[kind], **OPTIONS), center_view(PIXELS, **OPTIONS))
    assert torch.equal(model.encode(BATCHES[kind]), model.encode(PIXELS))


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("kind", SINGLE)
def test_one_image_has_no_batch_dimension(kind, backend, model):
    one, batch = SINGLE[kind], PIXELS[:1]
    assert torch.equal(views_of(one), views_of(batch)[:, 0])
    view = center_view(one, **OPTIONS, backend=backend)
    assert view.shape == (3, 64, 64)
    assert torch.equal(view, center_view(batch, **OPTIONS)[0])
    assert torch.equal(model.encode(one), model.encode(batch)[0])
    assert torch.equal(model.encode(view), model.encode(batch)[0])


def test_one_picture_is_torchvision_s():
    transform = transforms.Compose(
        [
            transforms.Resize(70, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(64),
            transforms.ToTensor(),
            transforms.Normalize(POLICY.mean, POLICY.std),
        ]
    )
    assert torch.equal(Preprocessing.of(POLICY)(PICTURES[1]), transform(PICTURES[1]))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_pictures_of_other_modes_are_converted(mode):
    picture = PICTURES[0].convert(mode)
    rgb = torch.from_numpy(np.array(picture.convert("RGB")))
    assert torch.equal(center_view(picture, **OPTIONS), center_view(rgb, **OPTIONS))


def test_16_bit_gray_is_scaled():
    gray = Image.fromarray(np.full((64, 64), 257 * 100, dtype=np.uint16))
    view = center_view(gray, resize=None, size=64, mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.equal(view, torch.full((3, 64, 64), 100 / 255))


class Pictures(Dataset):
    """As a data set of the public code: its transform takes one Pillow image."""

    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.transform(PICTURES[index % 3]), index


def test_two_views_are_the_transform_of_a_data_set():
    torch.manual_seed(3)
    (views, index), (again, _) = DataLoader(Pictures(TwoViews("stl10")), batch_size=2)
    x1, x2 = views.unbind(1)
    assert x1.shape == x2.shape == (2, 3, 64, 64)
    assert index.tolist() == [0, 1]
    torch.manual_seed(3)
    torch.empty((), dtype=torch.int64).random_()  # the loader's own draw
    expected = [TwoViews("stl10")(picture) for picture in (*PICTURES, PICTURES[0])]
    assert torch.equal(torch.cat([views, again]), torch.stack(expected))
    first, second = TwoViews("cifar")(Image.new("RGB", (32, 32)))
    assert first.shape == second.shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.zeros((2, 8, 8, 3)), TypeError, "images is an array of float64; it must be of uint8"),
        (PIXELS[0].float(), TypeError, r"images is torch\.float32; it must be torch\.uint8"),
        ("x.png", TypeError, "images is of type str; it must be a uint8 tensor, a uint8 array or"),
        ([PIXELS[0], None], TypeError, r"images\[1\] is of type NoneType; it must be a uint8"),
        (np.zeros((8, 8), np.uint8), ValueError, r"images is \[8, 8\]; it must be \[N, H, W, 3\]"),
        ([PICTURES], TypeError, r"images\[0\] is of type list; it must be a uint8 tensor"),
    ],
)
def test_what_is_no_image_is_named(images, error, message):
    for function in (TwoViews("stl10"), Preprocessing.of(POLICY)):
        with pytest.raises(error, match=message):
            function(images)

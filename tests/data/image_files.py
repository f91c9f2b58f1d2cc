"""Pictures and small image folders for tests, and what must not outlive them."""

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(seed, height=20, width=30, channels=3):
    """Smooth uint8 pixels that JPEG keeps well, different for every seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, channels), dtype=np.uint8)
    planes = [
        Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BILINEAR)
        for c in range(channels)
    ]
    return np.stack([np.asarray(plane) for plane in planes], -1)


def to_pillow(image):
    """The picture of uint8 pixels [H, W, 3]."""
    return Image.fromarray(image.contiguous().numpy())


def write_folder(root, *, train=6, test=4, classes=("cat", "dog"), sizes=((20, 30),)):
    """PNG files of known pixels; returns {relative path: pixels} in the order of the listing."""
    pixels = {}
    for split, count in (("train", train), ("val", test)):
        for name in classes:
            for number in range(count if split == "train" or test else 0):
                path = Path(split) / name / f"{number:03d}.png"
                seed = int(hashlib.sha256(os.fsencode(path)).hexdigest()[:8], 16)
                pixels[str(path)] = picture(seed, *sizes[number % len(sizes)])
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[str(path)]).save(root / path)
    return pixels


def assert_group_ends(group, seconds=20):
    """No process of this session is left."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail(f"processes of group {group} live on")

"""Figures of an evaluation: the confusion matrix, and test images with their neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amdim_fast.data.image_sets import ImageSet
from amdim_fast.evaluation.features import seen_pixels
from amdim_fast.evaluation.neighbours import nearest
from amdim_fast.optional import new_figure, png_of
from amdim_fast.views.preprocessing import Preprocessing
from amdim_fast.views.sheets import BACKGROUND, sheet, shown

DRAWING = "drawing the confusion matrix"
NAMED_CLASSES = 40
COUNTED_CLASSES = 15
SHEET_ROWS = 10
SHEET_NEIGHBOURS = 9
RIGHT, WRONG = (30, 150, 60), (200, 40, 40)


def draw_confusion(counts: Tensor, classes: Sequence[str], title: str) -> bytes:
    """A confusion matrix as PNG, colored by the share of each true class.

    Args:
        counts: int64 [n_classes, n_classes]: rows are true classes, columns predicted ones.
        classes: their names, shown if there are no more than 40.
        title: text above the matrix; the accuracy is added.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = 4 + 0.2 * min(len(counts), NAMED_CLASSES)
    figure = new_figure(side, side, DRAWING)
    axes = figure.add_subplot()
    axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
    accuracy = counts.trace() / counts.sum()
    axes.set(xlabel="predicted", ylabel="true", title=f"{title}: {float(accuracy):.1%}")
    if len(counts) <= NAMED_CLASSES:
        # Folders may have names that are not UTF-8, which fonts cannot show.
        names = [name.encode(errors="replace").decode() for name in classes]
        axes.set_xticks(range(len(counts)), names, rotation=90, parse_math=False)
        axes.set_yticks(range(len(counts)), names, parse_math=False)
    if len(counts) <= COUNTED_CLASSES:
        for row, column in counts.nonzero().tolist():
            color = "white" if share[row, column] > 0.5 else "black"
            count = str(int(counts[row, column]))
            axes.text(column, row, count, color=color, ha="center", va="center", fontsize=8)
    return png_of(figure)


def neighbour_sheet(
    train: ImageSet,
    test: ImageSet,
    train_features: Tensor,
    test_features: Tensor,
    preprocessing: Preprocessing,
) -> Tensor:
    """One row per test image, evenly spaced over the set: the image and its nearest neighbours.

    Neighbours are training images; the frame is green if the class is the test image's, else red.

    Args:
        train: N images.
        test: M images.
        train_features: [N, D].
        test_features: [M, D].
        preprocessing: crops each image to what the encoder sees.

    Returns:
        uint8 [height, width, 3].
    """
    rows = torch.linspace(0, len(test) - 1, min(SHEET_ROWS, len(test))).long()
    k = min(SHEET_NEIGHBOURS, len(train))
    index = nearest(train_features, test_features[rows], k).indices
    right = train.labels[index] == test.labels[rows, None]
    color = torch.where(right[..., None], torch.tensor(RIGHT), torch.tensor(WRONG)).byte()
    white = torch.full((len(rows), 1, 3), BACKGROUND, dtype=torch.uint8)
    found = _seen(train, index.flatten(), preprocessing)
    tiles = torch.cat(
        [_seen(test, rows, preprocessing)[:, None], found.view(len(rows), k, *found.shape[1:])], 1
    )
    return sheet(tiles, torch.cat([white, color], 1))


def _seen(images: ImageSet, index: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 [n, size, size, 3]: the encoder's input before normalization."""
    return shown(seen_pixels(images.batch(index), preprocessing))

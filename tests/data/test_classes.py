"""Labels follow the names of their classes."""

import pytest
import torch

from amdim_fast.data.classes import with_labels_of
from amdim_fast.data.datasets import ImageData
from amdim_fast.data.image_sets import TensorImages


def data_of(classes, train, test):
    sets = [
        TensorImages(torch.zeros(len(labels), 2, 2, 3, dtype=torch.uint8), torch.tensor(labels))
        for labels in (train, test)
    ]
    return ImageData(sets[0], sets[0], sets[1], tuple(classes))


def test_labels_follow_their_names():
    data = data_of("abc", [0, 1, 2, -1, 1], [2, 0])
    found = with_labels_of(data, "cab", "the run", "")
    assert found.classes == ("c", "a", "b")
    assert found.train.labels.tolist() == [1, 2, 0, -1, 2]
    assert found.train_labeled.labels.tolist() == [1, 2, 0, -1, 2]
    assert found.test.labels.tolist() == [0, 1]
    assert data.train.labels.tolist() == [0, 1, 2, -1, 1]
    assert with_labels_of(data, ["a", "b", "c"], "the run", "") is data


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("abx", "new 'c', missing 'x'"),
        ("ab", "new 'c', missing none"),
        ("abcd", "new none, missing 'd'"),
        ("vwxyz", "new 'a', 'b', 'c', missing 'v', 'w', 'x', ..."),
        (["a", "b", "c", "\x1b[1m\n"], r"new none, missing '\x1b[1m\n'"),
        ("abcc", "new none, missing none"),
    ],
)
def test_other_names_are_refused(names, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared whole
        with_labels_of(data_of("abc", [0], [0]), list(names), "the run", "rename them")
    assert str(caught.value) == (
        f"the classes of the data set are not those of the run: {said}; rename them"
    )

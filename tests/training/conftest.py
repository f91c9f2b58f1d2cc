"""Fixtures of the tests of runs."""

import pytest

from amdim_fast.data.datasets import LOADERS
from tests.training.tiny import few_digits


@pytest.fixture(scope="module")
def few_digits_loaded():
    """``load_data("digits")`` is ``few_digits``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LOADERS, "digits", few_digits)
        yield

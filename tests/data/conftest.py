"""Fixtures of the tests of data."""

import threading

import pytest

from tests.data.leftovers import assert_nothing_is_left


@pytest.fixture
def nothing_is_left():
    """Threads and processes that the test started must have ended."""
    before = set(threading.enumerate())
    yield
    assert_nothing_is_left(before)

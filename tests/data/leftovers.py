"""Whether threads and worker processes have ended."""

import multiprocessing
import threading
import time

import pytest


def assert_nothing_is_left(before, seconds=10):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        threads = set(threading.enumerate()) - before
        if not threads and not multiprocessing.active_children():
            return
        time.sleep(0.02)
    pytest.fail(f"left behind: {threads}, {multiprocessing.active_children()}")

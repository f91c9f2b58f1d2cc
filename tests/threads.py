"""A number of torch's threads for a while, or the number of before after what changes it."""

import contextlib

import torch


@contextlib.contextmanager
def torch_threads(count=None):
    """``torch.set_num_threads(count)``, unless it is None, and back."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

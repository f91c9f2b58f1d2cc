"""A number of torch's threads for a while."""

import contextlib

import torch


@contextlib.contextmanager
def torch_threads(count):
    """``torch.set_num_threads(count)``, and back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

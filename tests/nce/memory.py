"""The memory that tensors take while some code runs."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargeTensors(TorchDispatchMode):
    """Most bytes that float tensors of ``least`` entries or more, made in here, took at once."""

    def __init__(self, least, given=()):
        super().__init__()
        self.least, self.alive, self.peak = least, 0, 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in given}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if (
                isinstance(tensor, torch.Tensor)
                and tensor.is_floating_point()
                and not tensor.is_mkldnn
            ):
                self._count(tensor.untyped_storage(), tensor.dtype.itemsize)
        return result

    def _count(self, storage, itemsize):
        size, key = storage.nbytes(), storage.data_ptr()
        if size < self.least * itemsize or key in self._known:
            return
        self._known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, size, key)

    def _forget(self, size, key):
        self._known.discard(key)
        self.alive -= size


def tensors_of(tree):
    """Its leaves that are tensors."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]

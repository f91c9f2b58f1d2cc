"""What the code of an op dispatches, counted: memory of large tensors, matrix products."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRODUCTS = (
    *("aten::mm", "aten::addmm", "aten::addmm_"),
    *("amdim_fast::rows_product_", "amdim_fast::columns_product_"),
)


class LargeTensors(TorchDispatchMode):
    """Most bytes that float tensors of ``least`` entries or more, made in here, took at once."""

    def __init__(self, least, given=()):
        super().__init__()
        self.least, self.alive, self.peak = least, 0, 0
        self._known = {tensor.untyped_storage()._cdata for tensor in given}

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
        size, key = storage.nbytes(), storage._cdata
        if size < self.least * itemsize or key in self._known:
            return
        self._known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, size, key)

    def _forget(self, size, key):
        self._known.discard(key)
        self.alive -= size


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function._schema.name
        self.count += name in PRODUCTS
        return function(*arguments, **(options or {}))


def tensors_of(tree):
    """Its leaves that are tensors."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]

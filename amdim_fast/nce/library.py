"""The torch.library handle of the ops, their registration, and where their kernels run."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("amdim_fast", "FRAGMENT")
OPS = torch.ops.amdim_fast
PLAIN = (Tensor, torch.nn.Parameter)


def register(name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define ``amdim_fast::name`` with one implementation for all devices, and its fake."""
    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, _closed(kernel), "CompositeExplicitAutograd")
    torch.library.register_fake(f"amdim_fast::{name}", fake, lib=LIBRARY)


def _closed(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel, which torch.compile does not look into where its graph breaks around the op."""
    opaque = None

    @functools.wraps(kernel)
    def call(*arguments: Any) -> Any:
        nonlocal opaque
        # Its import takes seconds: only where something else has made it.
        if opaque is None and "torch._dynamo" in sys.modules:
            opaque = torch.compiler.disable(kernel)
        return (opaque or kernel)(*arguments)

    return call


def register_autograd(name: str, function: Callable[..., Any]) -> None:
    """Call ``function(keyset, *arguments)`` where gradients may be wanted.

    An autograd.Function of the op's own costs less than ``torch.library.register_autograd``.
    """
    LIBRARY.impl(name, function, "Autograd", with_keyset=True)


def register_vmap(name: str, rule: Callable[..., Any]) -> None:
    """Give an op its rule of ``torch.func.vmap``."""
    torch.library.register_vmap(f"amdim_fast::{name}", rule, lib=LIBRARY)


def below_autograd(op: Any, keyset: Any, arguments: Sequence[Any]) -> Any:
    """The op without its derivative."""
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)


def is_plain(tensors: Iterable[Tensor]) -> bool:
    """Whether an op on the tensors may run without the dispatcher, for a third of its host time.

    Nothing traces or watches: no mode, no transform, no subclass.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.maybe_current_level() is not None
        or torch.jit.is_tracing()
        or any([type(tensor) not in PLAIN for tensor in tensors])
    )


@contextmanager
def prepared(tensor: Tensor) -> Iterator[None]:
    """On the tensor's device, without autocast."""
    device = tensor.device
    casts = torch.is_autocast_enabled(device.type)
    with (
        torch.cuda.device_of(tensor) if device.type == "cuda" else nullcontext(),
        torch.autocast(device.type, enabled=False) if casts else nullcontext(),
    ):
        yield

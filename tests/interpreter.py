"""Triton's interpreter, made to remember what it works out again at every operation.

At each launch and each call of a function it replaces the names of ``triton.language``, for each
tensor it spells out shape and type, and overflow it looks for in eight operations. None of this
changes what a kernel computes; overflow is found as before.
"""

import builtins
import functools
import inspect

import numpy as np
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

INTEGERS = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


@functools.cache
def _builtins_of(package):
    return [name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]


def _patch_builtin(package, builder, scope):
    for name in _builtins_of(package):
        member = getattr(package, name)
        if tl.core.is_builtin(member):
            interpreter._patch_attr(package, name, member, builder, scope)


class _Kept:
    """Names that stay replaced: a process that interprets compiles nothing."""

    def restore(self):
        """Nothing."""


def _replacing_once(patch):
    """``_patch_lang``, once for all functions of a module."""
    done = set()

    def patch_once(function):
        if function.__module__ not in done:
            patch(function)
            done.add(function.__module__)
        return _Kept()

    return patch_once


def _remembered_dtype(look_up):
    """``_get_np_dtype``, from a table by the name of the scalar."""
    known = {}

    def dtype_of(kind):
        scalar = kind.scalar
        if scalar.name not in known:
            known[scalar.name] = look_up(scalar)
        return known[scalar.name]

    return dtype_of


def _plain(shape):
    return builtins.tuple(getattr(size, "value", size) for size in shape)


def _remembered_block(make):
    """``block_type.__init__``, worked out once for each element and shape."""
    known = {}

    def remembered(self, element_ty, shape):
        key = element_ty.name, *_plain(shape)
        if key not in known:
            make(self, element_ty, shape)
            known[key] = dict(vars(self))
        vars(self).update(known[key], element_ty=element_ty)

    return remembered


def _remembered_tensor(make):
    """``tensor.__init__``, worked out once for each shape."""
    known = {}

    def remembered(self, handle, type):
        key = _plain(type.shape) if type.is_block() else ()
        if key not in known:
            make(self, handle, type)
            known[key] = dict(vars(self))
        vars(self).update(known[key], handle=handle, type=type, dtype=type.scalar)

    return remembered


def _check_overflow(self, lhs, rhs, binary_op):
    """As ``binary_op_sanitize_overflow_impl``, in one operation of numpy."""
    kind, name = lhs.type.scalar, binary_op.__name__
    if kind.int_bitwidth >= 64 or not self.builder.options.sanitize_overflow:
        return
    assert kind == rhs.type.scalar
    found = INTEGERS[name](lhs.handle.data.astype(np.int64), rhs.handle.data.astype(np.int64))
    fits = kind.get_int_min_value() <= found.min() and found.max() <= kind.get_int_max_value()
    self.builder.create_assert(fits, f"{kind} overflow detected for operation {name}")


def remember():
    """Once; every name of every package is in its place yet."""
    interpreter._patch_builtin = _patch_builtin
    interpreter._patch_lang = _replacing_once(interpreter._patch_lang)
    interpreter._get_np_dtype = _remembered_dtype(interpreter._get_np_dtype)
    tl.block_type.__init__ = _remembered_block(tl.block_type.__init__)
    tl.tensor.__init__ = _remembered_tensor(tl.tensor.__init__)
    TritonSemantic.binary_op_sanitize_overflow_impl = _check_overflow

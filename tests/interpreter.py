"""Triton's interpreter, made to look up what it replaces only once.

At each launch, and at each call of a function inside one, it goes through every name of
``triton.language`` for those that a kernel calls. Which names these are does not change.
"""

import functools
import inspect

import triton.language as tl
from triton.runtime import interpreter


@functools.cache
def _builtins_of(package):
    return [name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]


def _patch_builtin(package, builder, scope):
    for name in _builtins_of(package):
        member = getattr(package, name)
        if tl.core.is_builtin(member):
            interpreter._patch_attr(package, name, member, builder, scope)


def remember_builtins():
    """Once; every name of every package is in its place yet."""
    interpreter._patch_builtin = _patch_builtin

"""Launches of Triton kernels through their compiled form, for a fraction of ``kernel[grid]``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import Parameter
from typing import Any, NamedTuple

import triton
from torch import Tensor
from triton import JITFunction
from triton.runtime import driver

# Versions of Triton that specialize kernels and call launchers in the way that is relied on here.
CHECKED_VERSIONS = ("3.6", "3.7", "3.8", "3.9")
IS_CHECKED = ".".join(triton.__version__.split(".")[:2]) in CHECKED_VERSIONS

if IS_CHECKED:
    from triton import knobs
    from triton._C.libtriton import native_specialize_impl
    from triton.compiler import CompiledKernel, make_backend


class _Handle(NamedTuple):
    """A compiled kernel, and what its launcher takes besides grid, stream and arguments."""

    run: Callable[..., None]
    function: Any
    metadata: Any
    constexprs: tuple[Any, ...]
    compiled: Any  # kept: its end unloads the function


class _Plan(NamedTuple):
    """What is fixed for a kernel on a device, and its compiled forms so far."""

    arity: int  # number of arguments; -1 for a kernel that is launched by kernel[grid] only
    flags: tuple[tuple[bool, bool, bool], ...]  # per argument: const, specialized, by alignment
    specialize: Callable[..., tuple[Any, Any]]  # Triton's own, of an argument and its flags
    handles: dict[tuple[Any, ...], _Handle]
    kernel: Any  # kept: the plan is found by its id


_plans: dict[tuple[int, int], _Plan] = {}


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Do what ``kernel[grid](*arguments, **constants)`` does, products fused with sums.

    The first launch of a specialization is that call. Later ones hand the same arguments to the
    launcher of the compiled kernel, on the current device and stream; they do not compare the
    globals that the kernel reads with their values at compilation.

    Every launch is that call in the interpreter, for a wrapped kernel, on a backend other than
    CUDA, in a Triton that is not among ``CHECKED_VERSIONS``, and while hooks, debugging or
    instrumentation are on.

    Args:
        kernel: a kernel whose constexpr parameters come last; any other takes that call.
        grid: one to three sizes.
        arguments: tensors of the current device, None, numbers or tensor descriptors, one for each
            parameter that is not constexpr; with fewer or more, the launch is that call.
        constants: constexpr parameters and options such as ``num_warps``, all hashable.
    """
    if not _is_direct(kernel):
        _call(kernel, grid, arguments, constants)
        return
    active = driver.active
    device = active.get_current_device()
    plan = _plans.get((id(kernel), device)) or _add_plan(kernel, device)
    if len(arguments) != plan.arity:
        _call(kernel, grid, arguments, constants)
        return
    key = _key(plan, arguments, constants)
    handle = plan.handles.get(key)
    if handle is None:
        compiled = _call(kernel, grid, arguments, constants)
        if isinstance(compiled, CompiledKernel):
            plan.handles[key] = _handle(kernel, compiled, constants)
        return
    run, function, metadata, constexprs, _ = handle
    stream = active.get_current_stream(device)
    sizes = (*grid, 1, 1)[:3]
    # No launch hooks nor metadata for them: without hooks they change nothing.
    run(*sizes, stream, function, metadata, None, None, None, *arguments, *constexprs)


def _call(
    kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]
) -> Any:
    # Fusion is asked for by name: Triton 3.9 warns of a default, and 3.10 has another one.
    return kernel[grid](*arguments, enable_fp_fusion=True, **constants)


class Prepared:
    """A launch of which all but the tensors is known; it costs the host less than ``launch``.

    Args:
        kernel: as for ``launch``; its tensors come before its numbers.
        grid: as for ``launch``.
        numbers: arguments after the tensors.
        constants: constexpr parameters and options.

    The types of the tensors, and the current device, must be the same at each call.
    """

    def __init__(
        self, kernel: Any, grid: tuple[int, ...], numbers: tuple[Any, ...], **constants: Any
    ) -> None:
        self._kernel, self._grid, self._numbers, self._constants = kernel, grid, numbers, constants
        self._sizes = (*grid, 1, 1)[:3]
        # Which tensors are None and how the others are aligned -> handle and device.
        self._handles: dict[tuple[int | None, ...], tuple[_Handle, int]] = {}

    def __call__(self, *tensors: Tensor | None) -> None:
        """Launch on the current device and stream."""
        if not self._handles or not _is_direct(self._kernel):
            self._launch(tensors)
            return
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        known = self._handles.get(tuple([a if a is None else a % 16 for a in addresses]))
        if known is None:
            self._launch(tensors)
            return
        (run, function, metadata, constexprs, _), device = known
        stream = driver.active.get_current_stream(device)
        run(
            *self._sizes,
            *(stream, function, metadata, None, None, None),
            *addresses,
            *self._numbers,
            *constexprs,
        )

    def _launch(self, tensors: tuple[Tensor | None, ...]) -> None:
        """Launch by ``launch``, and keep the handle that it took, if any."""
        arguments = (*tensors, *self._numbers)
        launch(self._kernel, self._grid, *arguments, **self._constants)
        if not _plans or not _is_direct(self._kernel):
            return
        device = driver.active.get_current_device()
        plan = _plans.get((id(self._kernel), device))
        if plan is not None and len(arguments) == plan.arity:
            handle = plan.handles.get(_key(plan, arguments, self._constants))
            if handle is not None:
                key = tuple([t if t is None else t.data_ptr() % 16 for t in tensors])
                self._handles[key] = handle, device


def _is_direct(kernel: Any) -> bool:
    """Whether launches of the kernel may go through its compiled form."""
    return (
        IS_CHECKED
        and type(kernel) is JITFunction
        and not kernel.pre_run_hooks
        and not (runtime := knobs.runtime).debug
        and not runtime.add_stages_inspection_hook
        and not getattr(runtime.launch_enter_hook, "calls", True)
        and not getattr(runtime.launch_exit_hook, "calls", True)
        and not knobs.compilation.instrumentation_mode
    )


def _key(plan: _Plan, arguments: tuple[Any, ...], constants: dict[str, Any]) -> tuple[Any, ...]:
    """What the arguments are specialized by."""
    key: list[Any] = [len(constants), *constants, *constants.values()]
    add = key.append
    for argument, flag in zip(arguments, plan.flags, strict=True):
        kind = type(argument)
        if kind is Tensor:
            add(argument.dtype)
            add(argument.data_ptr() % 16 == 0)
        elif (
            (kind is int and not flag[1] and -(2**31) <= argument < 2**31)
            or kind is float
            or argument is None
        ):
            add(kind)
        else:
            add(plan.specialize(argument, *flag))
    return tuple(key)


def _add_plan(kernel: Any, device: int) -> _Plan:
    target = driver.active.get_current_target()
    given = [parameter for parameter in kernel.params if not parameter.is_constexpr]
    kinds = {parameter.kind for parameter in kernel.signature.parameters.values()}
    is_plain = given == kernel.params[: len(given)] and Parameter.VAR_POSITIONAL not in kinds
    plan = _Plan(
        len(given) if is_plain and target.backend == "cuda" else -1,
        tuple(
            (p.is_const, not p.do_not_specialize, not p.do_not_specialize_on_alignment)
            for p in given
        ),
        partial(native_specialize_impl, make_backend(target)),
        {},
        kernel,
    )
    return _plans.setdefault((id(kernel), device), plan)


def _handle(kernel: Any, compiled: Any, constants: dict[str, Any]) -> _Handle:
    values = tuple(constants.get(p.name, p.default) for p in kernel.params if p.is_constexpr)
    return _Handle(compiled.run, compiled.function, compiled.packed_metadata, values, compiled)

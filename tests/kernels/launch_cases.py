"""What ``tests.kernels.test_launch`` reports, as a script: launches on a driver that records them.

There nothing is interpreted: Triton compiles for sm_90.
"""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import triton
import triton.language as tl
from amdim_fast.kernels import launch as launch_module
from amdim_fast.kernels.launch import launch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

# name: [(text of launch.py, wrong text)]
MUTANTS = {
    "alignment": [("argument.data_ptr() % 16 == 0", "True")],
    "type of the entries": [("add(argument.dtype)", "pass")],
    "width of an integer": [("-(2**31) <= argument < 2**31", "True")],
    "specialized integer": [("not flag[1]", "True")],
    "specialized by alignment": [("not p.do_not_specialize_on_alignment", "False")],
    "None, integer or float": [("add(kind)", "add(float)")],
    "constants": [("*constants.values()]", "]")],
    "device": [("(id(kernel), device)", "(id(kernel), 0)")],
    "stream": [("stream = active.get_current_stream(device)", "stream = 0")],
    "constants handed over": [("*arguments, *constexprs)", "*arguments)")],
    "defaults": [("constants.get(p.name, p.default)", "constants.get(p.name)")],
    "number of arguments": [
        ("len(arguments) != plan.arity", "False"),
        ("strict=True", "strict=False"),
    ],
    "order of parameters": [("len(given) if is_plain and", "len(given) if")],
    "fusion": [("enable_fp_fusion=True, ", "")],
}
# What every launch asks of the compiler.
FUSED = {"enable_fp_fusion": True}


PREPARED_MUTANTS = {
    "alignment": ("a if a is None else a % 16 for a in addresses", "0 for a in addresses"),
    "numbers": ("            *self._numbers,\n            *constexprs", "            *constexprs"),
    "stream": ("stream = driver.active.get_current_stream(device)", "stream = 0"),
    "addresses": ("            *addresses,\n", "            *addresses[::-1],\n"),
}


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["stride"])
def mixed(out, weight, count, size, stride, scale, block: tl.constexpr, shift: tl.constexpr = 3):
    column = tl.arange(0, block)
    value = column * scale + count + size + stride + shift
    if weight is not None:
        value += tl.load(weight + column)
    tl.store(out + column, value, mask=column < size)


@triton.jit
def described(features, out, row, width: tl.constexpr):
    column = tl.arange(0, width)
    tile = features.load([row, 0])
    tl.store(out + column, tl.sum(tile.to(tl.float32), axis=0))


@triton.jit
def constant_first(width: tl.constexpr, out):
    tl.store(out + tl.arange(0, width), 1.0)


TENSORS_AND_NUMBERS = "out", "weight", "count", "size", "stride", "scale"
RUNS = []  # an entry for each call of JITFunction.run
SEEN = []  # arguments of each call of a launcher


class Launcher:
    """Stands for the launcher of a compiled kernel and notes what it gets."""

    def __init__(self, source, metadata):
        pass

    def __call__(self, *arguments):
        SEEN.append(arguments)


class Driver:
    """Stands for CUDA: kernels are compiled for sm_90, and loaded as an object of their own."""

    launcher_cls = Launcher
    utils = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": 2**18},
        load_binary=lambda *_: (object(), object(), 32, 0, 1024),
        unload_module=lambda module: None,
    )

    def __init__(self):
        self.device = self.stream = 0

    def get_current_device(self):
        return self.device

    def get_current_stream(self, device):
        return 100 * (device + 1) + self.stream

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def cases():
    """(name, whether it is a new specialization, kernel, grid, arguments, constants, settings)."""
    out, other = torch.zeros(64), torch.zeros(64)
    half = torch.zeros(64, 64, dtype=torch.float16)
    base = {"out": out, "weight": out, "count": 5, "size": 7, "stride": 7, "scale": 1.5}
    plain = {"block": 16}

    def case(name, is_new, constants=plain, grid=(3,), stream=0, device=0, **changed):
        arguments = tuple((base | changed).values())
        settings = {"stream": stream, "device": device}
        return name, is_new, mixed, grid, arguments, constants, settings

    def described_case(name, is_new, base, rows=64, block=(16, 32), **options):
        shape = [rows, base.shape[1]]
        features = TensorDescriptor(base, shape, list(base.stride()), list(block), **options)
        constants = {"width": block[1], "num_stages": 2}
        return name, is_new, described, (1, 2), (features, out, 3), constants, {}

    return [
        case("first", True),
        case("same again", False),
        case("other values", False, out=other, weight=other, count=6, size=9, stride=9, scale=2.5),
        case("grid of two", False, grid=(3, 2)),
        case("grid of three", False, grid=(3, 2, 4)),
        case("other stream", False, stream=7),
        case("other device", True, device=1),
        case("other device and stream", False, device=1, stream=7),
        case("misaligned", True, out=out[1:]),
        case("misaligned differently", False, out=other[2:]),
        case("misaligned weight", True, weight=out[1:]),
        case("aligned view", False, out=out[4:]),
        case("half weight", True, weight=half),
        case("no weight", True, weight=None),
        case("parameter", True, weight=torch.nn.Parameter(out)),
        case("largest 32-bit count", False, count=2**31 - 1),
        case("smallest 32-bit count", False, count=-(2**31)),
        case("64-bit count", True, count=2**31),
        case("negative 64-bit count", False, count=-(2**31) - 1),
        case("unsigned count", True, count=2**63),
        case("count of one", False, count=1),
        case("count of sixteen", False, count=16),
        case("boolean count", True, count=True),
        case("float count", True, count=2.0),
        case("size of one", True, size=1),
        case("size of sixteen", True, size=16),
        case("size of thirty-two", False, size=32),
        case("64-bit size", True, size=2**40 + 1),
        case("64-bit size of sixteens", True, size=2**40),
        case("stride of one", True, stride=1),
        case("stride of sixteen", False, stride=16),
        case("integer scale", True, scale=2),
        case("scale not finite", False, scale=float("nan")),
        case("other constant", True, {"block": 32}),
        case("constant with a default", True, {"block": 16, "shift": 1}),
        case("equal constant", False, {"block": 16, "shift": True}),
        case("warps", True, {"block": 16, "num_warps": 8}),
        described_case("descriptor", True, half),
        described_case("descriptor of fewer rows", False, half, rows=32),
        described_case("descriptor with padding", False, half, padding="nan"),
        described_case("descriptor of other blocks", True, half, block=(32, 32)),
        described_case("descriptor of other entries", True, half.bfloat16()),
        ("default given by place", None, mixed, (1,), (*base.values(), 16, 5), {}, {}),
        ("constant given by place", None, mixed, (1,), (*base.values(), 16), {}, {}),
        (
            *("argument given by name", None, mixed, (1,), tuple(base.values())[:-1]),
            *({"scale": 2.5} | plain, {}),
        ),
        ("constant first", None, constant_first, (1,), (16,), {"out": out}, {}),
    ]


def launched(function, *arguments, **constants):
    """Whether that took ``JITFunction.run``, and what reached the launcher apart from hooks."""
    SEEN.clear()
    before = len(RUNS)
    function(*arguments, **constants)
    (given,) = SEEN
    return len(RUNS) > before, given[:6] + given[9:]


def first_case():
    _, _, kernel, grid, arguments, constants, _ = cases()[0]
    return (kernel, grid, *arguments), constants


def is_slow(function=launch):
    arguments, constants = first_case()
    return launched(function, *arguments, **constants)[0]


def equal(one, other):
    return one is other or (not isinstance(one, torch.Tensor) and one == other)


def rows(function):
    """(name, is new, whether arguments were the same, whether two launches took the slow way)."""
    found = []
    for name, is_new, kernel, grid, arguments, constants, settings in cases():
        vars(driver.active).update({"stream": 0, "device": 0} | settings)
        _, expected = launched(kernel[grid], *arguments, **FUSED, **constants)
        slow, same = [], True
        for _ in range(2):
            is_slow, given = launched(function, kernel, grid, *arguments, **constants)
            slow.append(is_slow)
            same &= len(given) == len(expected) and all(map(equal, given, expected))
        found.append([name, is_new, same, slow])
    vars(driver.active).update(stream=0, device=0)
    return found


def prepared_rows(prepared_class):
    """(name, whether the launcher got the same, which of two launches took the slow way)."""
    found = []
    for name, _, kernel, grid, arguments, constants, settings in cases():
        if kernel is not mixed or len(arguments) != len(TENSORS_AND_NUMBERS):
            continue
        vars(driver.active).update({"stream": 0, "device": 0} | settings)
        tensors, numbers = arguments[:2], arguments[2:]
        _, expected = launched(kernel[grid], *arguments, **FUSED, **constants)
        run = prepared_class(kernel, grid, numbers, **constants)
        first = launched(run, *tensors)[0]
        second, given = launched(run, *tensors)
        addresses = [t.data_ptr() if isinstance(t, torch.Tensor) else t for t in expected]
        same = len(given) == len(addresses) and all(map(equal, given, addresses))
        found.append([name, same, [first, second]])
        # Another alignment is another specialization, of the same prepared launch.
        if tensors[0].data_ptr() % 16 == 0:
            other = tensors[0][1:], *tensors[1:]
            _, expected = launched(kernel[grid], *other, *numbers, **FUSED, **constants)
            _, given = launched(run, *other)
            found.append([f"{name}, misaligned", given[4] is expected[4], [first, second]])
    vars(driver.active).update(stream=0, device=0)
    return found


def planted(changes, name="launch"):
    """A function or class of ``launch.py`` with ``changes`` of its text."""
    path = Path(launch_module.__file__)
    text = path.read_text(encoding="utf-8")
    for right, wrong in changes:
        assert right in text, right
        text = text.replace(right, wrong)
    module = ModuleType("planted")
    exec(compile(text, str(path), "exec"), vars(module))
    return getattr(module, name)


def watched():
    """Whether launches before, with and after a hook or a setting of Triton are slow."""
    runtime, compilation = triton.knobs.runtime, triton.knobs.compilation
    calls, found = [], {}

    def hook(*_, **__):
        calls.append(1)

    for name, add, remove in (
        ("enter hook", runtime.launch_enter_hook.add, runtime.launch_enter_hook.remove),
        ("exit hook", runtime.launch_exit_hook.add, runtime.launch_exit_hook.remove),
        ("pre-run hook", mixed.pre_run_hooks.append, mixed.pre_run_hooks.remove),
    ):
        found[name] = [is_slow()]
        add(hook)
        found[name].append(is_slow())
        remove(hook)
        found[name].append(is_slow())
    for holder, name, value in (
        (runtime, "launch_enter_hook", hook),
        (runtime, "add_stages_inspection_hook", lambda *_: ("key", "hash")),
        (runtime, "debug", True),
        (compilation, "instrumentation_mode", "none such"),
    ):
        found[name] = [is_slow()]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(holder, name, value)
            found[name].append(is_slow())
        found[name].append(is_slow())
    return found | {"calls": len(calls)}


def wrapped():
    """Whether two launches of a kernel with heuristics are slow."""
    kernel = triton.heuristics({"shift": lambda _: 4})(mixed)
    (_, *arguments), constants = first_case()
    return [launched(launch, kernel, *arguments, **constants)[0] for _ in range(2)]


def called():
    """Names of the Python functions that run during a cached launch."""
    names = []
    arguments, constants = first_case()
    launch(*arguments, **constants)
    sys.setprofile(lambda frame, event, _: event == "call" and names.append(frame.f_code.co_name))
    launch(*arguments, **constants)
    sys.setprofile(None)
    return names


def versions():
    """Whether the second launch is slow, by version of Triton."""
    found = {}
    for version in ("3.5.1", "3.6.0", "3.7.1", "3.8.0+git12", "3.9.1", "3.10.0", "4.0.0"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(triton, "__version__", version)
            function = planted([])
        found[version] = [is_slow(function) for _ in range(2)][1]
    return found


def main():
    driver.set_active(Driver())
    run = triton.JITFunction.run

    def counted(*arguments, **options):
        RUNS.append(1)
        return run(*arguments, **options)

    triton.JITFunction.run = counted
    found = {"cases": rows(launch), "watched": watched(), "wrapped": wrapped()}
    found |= {"called": called(), "versions": versions()}
    found["mutants"] = {name: rows(planted(changes)) for name, changes in MUTANTS.items()}
    found["prepared"] = prepared_rows(launch_module.Prepared)
    found["prepared mutants"] = {
        name: prepared_rows(planted([change], "Prepared"))
        for name, change in PREPARED_MUTANTS.items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()

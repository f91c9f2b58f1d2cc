"""The import arrow: folders are in an order, imports run down it, planted violations are caught."""

import ast
import functools
import re
import sys
from pathlib import Path

import pytest

from tests.forked import TORCH
from tests.processes import run

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "amdim_fast"

# The lowest folder first: a file imports from its own folder and from those before it.
ORDER = (
    "kernels",  # Triton only
    "root",  # amdim_fast/*.py: version, files, devices, checks
    *("distributed", "data"),
    *("nce", "views"),
    *("checkpoints", "model"),
    *("evaluation", "segmentation", "training", "bench"),
    "cli",
    "door",  # amdim_fast itself and __main__: they hand on what the rest has
)
# Third-party packages that a folder may import, beside the standard library; elsewhere any.
ALLOWED = {
    "kernels": {"torch", "triton"},
    "root": {"torch"},
    "distributed": {"torch"},
    "nce": {"torch"},
}


def folder_of(module):
    parts = module.split(".")
    if parts[1:2] in ([], ["__main__"]):
        return "door"
    return parts[1] if parts[1] in ORDER else "root"


@functools.cache
def imports_of(source, module, is_package=False):
    """Absolute names of all imports, in functions and strings too; ``from a import b``: a.b, a"""
    return tuple(_imports_of(source, module, is_package))


def _imports_of(source, module, is_package):
    package = module.split(".") if is_package else module.split(".")[:-1]

    def absolute(name, level):
        base = package[: len(package) - level + 1] if level else []
        return ".".join([*base, name] if name else base)

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name,) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node.module, node.level)
            yield from ((f"{base}.{alias.name}", base) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(rf"{PACKAGE}(\.\w+)+(:\w+)?", node.value):
                name = node.value.partition(":")[0]
                yield name, name.rpartition(".")[0]
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            text = node.args[0]
            if called in ("import_module", "__import__"):
                if isinstance(text, ast.JoinedStr):
                    yield (f"{PACKAGE}.__main__.made_at_run_time",)
                elif isinstance(text, ast.Constant) and str(text.value).startswith("."):
                    name = text.value.lstrip(".")
                    yield (absolute(name, len(text.value) - len(name)),)


def violations(sources):
    """Sentences about imports up the order, cycles, and packages that a folder may not use."""
    found, graph = [], {}
    for module, source in sources.items():
        folder = folder_of(module)
        if folder == "door":
            continue
        is_package = any(other.startswith(module + ".") for other in sources)
        for names in imports_of(source, module, is_package):
            target = next((name for name in names if name in sources), names[-1])
            if target == module:
                continue
            top = target.split(".")[0]
            if top != PACKAGE:
                if top not in sys.stdlib_module_names | ALLOWED.get(folder, {top}):
                    found.append(f"{module} imports {target}, which {folder} may not")
                continue
            other = folder_of(target)
            if ORDER.index(other) > ORDER.index(folder):
                found.append(f"{module} imports {target}, above it")
            if is_reference(module) and not is_reference(target):
                found.append(f"{module} imports {target}; a judge stands alone")
            graph.setdefault(module, set()).add(target)
    return found + [f"cycle through {module}" for module in graph if in_cycle(module, graph)]


def is_reference(module):
    """Whether a module is a judge in plain PyTorch, or says what it judges."""
    leaf = module.rpartition(".")[2]
    return leaf.startswith("reference") or module in VOCABULARY


VOCABULARY = {"amdim_fast.views.params"}


def in_cycle(start, graph):
    seen, open_nodes = set(), list(graph.get(start, ()))
    while open_nodes:
        node = open_nodes.pop()
        if node == start:
            return True
        if node not in seen:
            seen.add(node)
            open_nodes += graph.get(node, ())
    return False


@pytest.fixture(scope="module")
def sources():
    found = {}
    for folder, package in ((ROOT / PACKAGE, PACKAGE), (ROOT / "kernels", f"{PACKAGE}.kernels")):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join([package, *(part for part in parts if part != "__init__")])
            found[name] = path.read_text(encoding="utf-8")
    return found


def test_arrow_holds(sources):
    assert len(sources) > 60
    assert violations(sources) == []


def test_every_folder_has_its_place_and_the_root_is_small(sources):
    folders = {path.name for path in (ROOT / PACKAGE).iterdir() if any(path.glob("*.py"))}
    assert folders | {"kernels"} == set(ORDER) - {"root", "door"}
    files = [path for path in (ROOT / PACKAGE).iterdir() if path.suffix in (".py", ".typed")]
    assert len(files) <= 8


@pytest.mark.parametrize(
    ("module", "planted", "expected"),
    [
        ("model.encoder", "from amdim_fast.training.run import Run", "training.run, above"),
        ("nce.plan", "def f():\n    import amdim_fast.cli.main", "cli.main, above"),
        ("nce.plan", "def f():\n    import amdim_fast", "imports amdim_fast, above"),
        ("nce.plan", "from importlib import import_module as i\ni('amdim_fast.views.op')", "above"),
        ("nce.plan", "__import__(f'amdim_fast.{name}')", "made_at_run_time, above"),
        ("nce.plan", "import importlib\nimportlib.import_module('..cli.main')", "cli.main, above"),
        ("data.datasets", "from .. import model", "imports amdim_fast.model, above"),
        ("data", "from ..cli import main", "amdim_fast.cli.main, above"),
        ("nce.reference", "from . import op", "imports amdim_fast.nce.op; a judge"),
        ("nce.reference", "from amdim_fast.nce import losses", "nce.losses; a judge"),
        ("kernels", "from amdim_fast.nce import reference", "nce.reference, above"),
        ("kernels.nce_scores", "import amdim_fast.files", "files, above"),
        ("nce.plan", "import numpy", "imports numpy, which nce may not"),
        ("nce.plan", "import triton", "imports triton, which nce may not"),
        ("nce.plan", "from amdim_fast.nce import op", "cycle through"),
        ("stray", "import amdim_fast.data", "amdim_fast.data, above"),
    ],
)
def test_planted_violations_are_caught(sources, module, planted, expected):
    module = f"{PACKAGE}.{module}"
    changed = sources | {module: planted + "\n" + sources.get(module, "")}
    changed[module] = changed[module].replace("from __future__ import annotations", "")
    assert any(expected in sentence for sentence in violations(changed))


def run_python(code, folder="."):
    return run(["-c", code], folder, imported=TORCH)


LOADED = """
import sys, torch
heavy = {'triton', 'torchvision', 'matplotlib', 'mlxtend', 'PIL', 'sklearn', 'tensorboard'}
bad = heavy & {name.split('.')[0] for name in sys.modules}
bad |= {name for name, module in sys.modules.items() if name.startswith('amdim_fast')
        and str(getattr(module, '__file__', '')).endswith('.so')}
bad |= {path for path in torch.ops.loaded_libraries if 'amdim_fast' in path}
print(sorted(bad))
"""


def test_import_loads_no_triton_and_no_compiled_library():
    done = run_python("import amdim_fast\n" + LOADED)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


COMPILER = "\nimport sys\nprint('torch._dynamo' in sys.modules)"


def test_commands_begin_without_torchs_compiler():
    """It takes as long to import as torch itself; the other code shows that it would be seen."""
    assert run_python("import amdim_fast.cli.main" + COMPILER).stdout == "False\n"
    assert run_python("import amdim_fast.model.sync_batchnorm" + COMPILER).stdout == "True\n"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import amdim_fast.kernels.nce_forward", "triton"),
        ("import amdim_fast.views.op", "_cpu.so"),
        ("from amdim_fast.views.compiled import load_cpu; load_cpu()", "_cpu.so"),
    ],
)
def test_what_an_import_may_not_load_would_be_seen(code, found):
    assert found in run_python(code + LOADED).stdout


def test_every_public_name_resolves():
    code = "import amdim_fast\nfor name in amdim_fast.__all__: getattr(amdim_fast, name)"
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_kernels_are_refused_under_another_name():
    done = run_python("import kernels", ROOT)
    assert done.returncode == 1
    assert "it must be imported as amdim_fast.kernels" in done.stderr
    assert run_python("import amdim_fast.kernels").returncode == 0


def test_triton_is_never_imported_by_the_reference_or_the_tests_of_layers(sources):
    for module, source in sources.items():
        names = {name for found in imports_of(source, module) for name in found}
        if any(name.split(".")[0] == "triton" for name in names):
            assert module.startswith("amdim_fast.kernels")

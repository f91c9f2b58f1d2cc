"""The import arrow: every module imports lower layers only, and planted violations are caught."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Prefixes of module names, lowest layer first; the longest match decides.
LAYERS = (
    ("amdim_fast.reference", "amdim_fast.views"),
    ("amdim_fast.kernels",),
    ("amdim_fast.ops",),
    (
        "amdim_fast.functional",
        "amdim_fast.feature_maps",
        "amdim_fast.losses",
        "amdim_fast.mixture",
        "amdim_fast.feature_map_task",
        "amdim_fast.augmentation",
        "amdim_fast.encoder",
        "amdim_fast.gradient_cache",
        "amdim_fast.probes",
        "amdim_fast.replay",
        "amdim_fast.sync_batchnorm",
    ),
    (
        "amdim_fast.model",
        "amdim_fast.checkpoint",
        "amdim_fast.checkpoint_names",
        "amdim_fast.data",
        "amdim_fast.devices",
        "amdim_fast.distributed",
        "amdim_fast.decoding",
        "amdim_fast.encoding",
        "amdim_fast.export",
        "amdim_fast.export_config",
        "amdim_fast.features",
        "amdim_fast.files",
        "amdim_fast.folders",
        "amdim_fast.image_sets",
        "amdim_fast.loading",
        "amdim_fast.logistic",
        "amdim_fast.measuring",
        "amdim_fast.metrics",
        "amdim_fast.neighbours",
        "amdim_fast.optional",
        "amdim_fast.packed_store",
        "amdim_fast.packing",
        "amdim_fast.parallel",
        "amdim_fast.pretrained",
        "amdim_fast.probe_training",
    ),
    (
        "amdim_fast.comparison",
        "amdim_fast.comparison_files",
        "amdim_fast.info",
        "amdim_fast.recipes",
        "amdim_fast.randomness",
        "amdim_fast.stopping",
        "amdim_fast.training",
        "amdim_fast.meter",
        "amdim_fast.run_checkpoints",
        "amdim_fast.run_setup",
        "amdim_fast.training_loop",
        "amdim_fast.pretraining",
        "amdim_fast.evaluation",
        "amdim_fast.segmentation",
        "amdim_fast.segment_files",
        "amdim_fast.figures",
        "amdim_fast.runlog",
        "amdim_fast.tensorboard_server",
        "amdim_fast.scoring",
        "amdim_fast.sheets",
    ),
    ("amdim_fast.cli", "amdim_fast.commands", "amdim_fast.__main__"),
)
# The package itself gathers public names, lazily above layer 3; anyone may ask its version.
PACKAGE = "amdim_fast"
# Third-party packages each part may import, beside the standard library.
ALLOWED = {
    "amdim_fast.kernels": {"torch", "triton"},
    "amdim_fast.reference": {"torch"},
    "amdim_fast.views": {"torch"},
    "amdim_fast.ops": {"torch"},
}


def layer_of(module):
    matches = [
        (len(prefix), level)
        for level, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if module == prefix or module.startswith(prefix + ".")
    ]
    return max(matches)[1] if matches else None


def imports_of(source, module):
    """Absolute names of all imports, inside functions too; ``from a import b`` is a.b and a."""
    package = module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name,) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base] if base else parent)
            yield from ((f"{base}.{alias.name}", base) for alias in node.names)


def violations(sources):
    """Sentences about imports that point up, and cycles within a layer."""
    found = []
    graph = {}
    for module, source in sources.items():
        level = layer_of(module)
        if level is None:
            found.append(f"{module} has no layer")
            continue
        for names in imports_of(source, module):
            target = next((name for name in names if name in sources), names[-1])
            top = target.split(".")[0]
            part = next((key for key in ALLOWED if module.startswith(key)), None)
            own = top == PACKAGE
            if part and not own and top not in sys.stdlib_module_names | ALLOWED[part]:
                found.append(f"{module} imports {target}, which {part} may not")
            if not own or target == PACKAGE:
                continue
            other = layer_of(target)
            if other is None or other > level:
                found.append(f"{module} (layer {level}) imports {target} (layer {other})")
            if module.startswith("amdim_fast.kernels") and not target.startswith(
                "amdim_fast.kernels"
            ):
                found.append(f"{module} imports {target}; a kernel imports torch and triton only")
            if other == level:
                graph.setdefault(module, set()).add(target)
    return found + [f"cycle through {module}" for module in graph if in_cycle(module, graph)]


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
    for folder, package in (
        (ROOT / "amdim_fast", "amdim_fast"),
        (ROOT / "kernels", "amdim_fast.kernels"),
    ):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join([package, *(part for part in parts if part != "__init__")])
            if name != PACKAGE:
                found[name] = path.read_text(encoding="utf-8")
    return found


def test_arrow_holds(sources):
    assert len(sources) > 15
    assert violations(sources) == []


@pytest.mark.parametrize(
    ("module", "planted", "expected"),
    [
        ("amdim_fast.encoder", "from amdim_fast.model import AMDIM", "imports amdim_fast.model"),
        ("amdim_fast.ops.plan", "def f():\n    import amdim_fast.cli", "imports amdim_fast.cli"),
        ("amdim_fast.reference.nce", "from ..ops import nce", "imports amdim_fast.ops.nce"),
        ("amdim_fast.reference.nce", "from amdim_fast import losses", "imports amdim_fast.losses"),
        ("amdim_fast.kernels", "from amdim_fast.reference import nce", "torch and triton only"),
        ("amdim_fast.views", "import numpy", "imports numpy, which"),
        ("amdim_fast.ops.plan", "from amdim_fast.ops import nce", "cycle through"),
        ("amdim_fast.stray", "import torch", "amdim_fast.stray has no layer"),
    ],
)
def test_planted_violations_are_caught(sources, module, planted, expected):
    changed = sources | {module: planted + "\n" + sources.get(module, "")}
    changed[module] = changed[module].replace("from __future__ import annotations", "")
    assert any(expected in sentence for sentence in violations(changed))


def run_python(code, **options):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, **options
    )


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


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import amdim_fast.kernels.nce_forward", "triton"),
        ("import amdim_fast._pixel", "amdim_fast._pixel"),
        ("from amdim_fast.ops.compiled import load_cpu; load_cpu()", "_cpu.so"),
    ],
)
def test_what_an_import_may_not_load_would_be_seen(code, found):
    assert found in run_python(code + LOADED).stdout


def test_every_public_name_resolves():
    code = "import amdim_fast\nfor name in amdim_fast.__all__: getattr(amdim_fast, name)"
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_kernels_are_refused_under_another_name():
    done = run_python("import kernels", cwd=ROOT)
    assert done.returncode == 1
    assert "import amdim_fast.kernels" in done.stderr
    assert run_python("import amdim_fast.kernels").returncode == 0


def test_triton_is_never_imported_by_the_reference_or_the_tests_of_layers(sources):
    for module, source in sources.items():
        names = {name for found in imports_of(source, module) for name in found}
        if any(name.split(".")[0] == "triton" for name in names):
            assert module.startswith("amdim_fast.kernels")

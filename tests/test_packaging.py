"""One version, a citation, an sdist that holds everything, workflows that run what there is."""

import re
import shutil
import tarfile
from pathlib import Path

import pytest
import yaml

import amdim_fast
from tests.forked import TORCH
from tests.processes import run

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ACTIONS = {"actions/checkout", "actions/setup-python"}
# What a user of the sdist has no use for.
NOT_SHIPPED = (".ci/", ".github/", ".gitignore")
# The sdist holds what is on disk; these come from building and running.
MADE = (
    *(".git", ".venv", "build", "dist", "runs", "*.egg-info", "__pycache__", "*.so", "kernels"),
    *(".pytest_cache", ".mypy_cache", ".ruff_cache", ".coverage*"),
)
BUILD_SDIST = "from setuptools import build_meta; print(build_meta.build_sdist('made'))"
READ_SETUP = """
import setuptools
from distutils.core import run_setup
setup = run_setup('setup.py', stop_after='init')
print(*(extension.name for extension in setup.ext_modules))
print(*setup.packages)
"""


def files_of(root):
    """Relative names of all files, links to folders left aside."""
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the sources alone; amdim_fast/kernels is a link where it exists."""
    copy = tmp_path_factory.mktemp("sources") / "amdim"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*MADE))
    shutil.copytree(ROOT / "kernels", copy / "kernels", ignore=shutil.ignore_patterns(*MADE))
    return copy


def test_version_has_one_place(tree):
    version = re.escape(amdim_fast.__version__)
    assigned = re.compile(rf"^\s*(__version__|version)\s*[=:]\s*\W?{version}\W?\s*$", re.MULTILINE)
    names = {name for name in files_of(tree) if name.endswith((".py", ".toml", ".cfg", ".cff"))}
    found = {name for name in names if assigned.search((tree / name).read_text(encoding="utf-8"))}
    assert found == {"amdim_fast/version.py", "CITATION.cff"}
    assert (
        'version = { attr = "amdim_fast.version.__version__" }'
        in (tree / "pyproject.toml").read_text()
    )


def test_citation_is_of_this_version_and_of_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == amdim_fast.__version__
    assert citation["title"] == "amdim_fast"
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors"} <= paper.keys()
    names = [author["family-names"] for author in paper["authors"]]
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"{names[0]}, {names[1]} and {names[2]}, *{paper['title']}*" in readme
    assert paper["url"] in readme


def test_sdist_holds_every_source(tree):
    before = files_of(tree)
    done = run(["-c", BUILD_SDIST], tree, imported=TORCH)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next((tree / "made").iterdir())) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        top = {name.partition("/")[0] for name in archive.getnames()}
    assert top == {f"amdim_fast-{amdim_fast.__version__}"}
    assert {name for name in before if not name.startswith(NOT_SHIPPED)} - names == set()
    assert {"csrc/cuda/augment.cu", "kernels/nce_forward.py", "amdim_fast/py.typed"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_a_user_installs_the_compiled_ops_and_nothing_of_the_tests(tree):
    done = run(["-c", READ_SETUP], tree, imported=TORCH)
    assert done.returncode == 0, done.stderr
    extensions, packages = (set(line.split()) for line in done.stdout.splitlines()[-2:])
    assert extensions - {"amdim_fast._cuda"} == {"amdim_fast._cpu"}
    assert {name.partition(".")[0] for name in packages} == {"amdim_fast"}
    assert "pybind11" not in (tree / "setup.py").read_text(encoding="utf-8")


PLANTED = """
import os, sys, torch
from distutils.core import run_setup
cards = {cards}
torch.version.cuda = {cuda}
torch.cuda.is_available = lambda: bool(cards)
torch.cuda.device_count = lambda: len(cards)
torch.cuda.get_device_capability = cards.__getitem__
import torch.utils.cpp_extension as extension
extension.BuildExtension.run = lambda self: print("built")
run_setup("setup.py", ["build_ext"])
print(os.environ["TORCH_CUDA_ARCH_LIST"])
"""


def build(tree, tmp_path, arguments, *, compiler=None, **variables):
    """A step of installing, with a PATH that has no more than a C++ compiler, if that is given."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    if compiler is not None:
        (tmp_path / "bin" / "c++").write_text(f"#!/bin/sh\n{compiler}\n")
        (tmp_path / "bin" / "c++").chmod(0o755)
    left_out = ("CXX", "CUDA_HOME", "FORCE_CUDA", "TORCH_CUDA_ARCH_LIST", "AMDIM_FAST_BUILD")
    given = {"PATH": str(tmp_path / "bin"), "TORCH_CPP_LOG_LEVEL": "ERROR"} | variables
    return run(arguments, tree, variables=dict.fromkeys(left_out) | given, imported=TORCH)


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [(None, "there is no C++ compiler 'c++'"), ("exit 1", "c++ does not compile C++20")],
)
@pytest.mark.parametrize("step", ["build", "build_ext"])
def test_without_a_compiler_installing_stops_before_the_build(
    tree, tmp_path, compiler, reason, step
):
    done = build(tree, tmp_path, ["setup.py", step], compiler=compiler)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"amdim_fast: {reason}, which the views need. Install one, ")
    assert "AMDIM_FAST_BUILD=0 to install without views" in said
    assert len(done.stdout.splitlines()) == 1  # running build
    assert not (tree / "build").exists()


def test_views_are_left_out_on_purpose(tree, tmp_path):
    done = build(tree, tmp_path, ["-c", READ_SETUP], AMDIM_FAST_BUILD="0")
    assert done.returncode == 0, done.stderr
    extensions, packages = done.stdout.splitlines()[-2:]
    assert extensions == ""
    assert "amdim_fast.kernels" in packages.split()
    assert "amdim_fast: views are left out, because AMDIM_FAST_BUILD is 0\n" in done.stderr


@pytest.mark.parametrize(
    ("cuda", "cards", "variables", "said", "listed"),
    [
        ("13.0", [], {}, "CPUs only, because nvcc, which CUDA needs, is not found", None),
        (None, [], {}, None, None),
        (
            "13.0",
            [(9, 0)],
            {"CUDA_HOME": "/no", "AMDIM_FAST_BUILD": "cpu"},
            "CPUs only, because AMDIM_FAST_BUILD is cpu",
            None,
        ),
        (
            "13.0",
            [],
            {"CUDA_HOME": "/no"},
            "8.0;9.0;10.0+PTX, all of them, as no GPU is here",
            "8.0;9.0;10.0+PTX",
        ),
        (
            "13.0",
            [(9, 0), (8, 6), (9, 0)],
            {"CUDA_HOME": "/no"},
            "8.6;9.0, those of the GPUs here",
            "8.6;9.0",
        ),
        (
            "13.0",
            [(9, 0)],
            {"CUDA_HOME": "/no", "TORCH_CUDA_ARCH_LIST": "7.5"},
            "7.5, as TORCH_CUDA_ARCH_LIST says",
            "7.5",
        ),
    ],
)
def test_what_is_built_is_said(tree, tmp_path, cuda, cards, variables, said, listed):
    code = PLANTED.format(cuda=repr(cuda), cards=cards)
    done = build(tree, tmp_path, ["-c", code], compiler="exit 0", **variables)
    assert done.returncode == 0, done.stderr
    assert "built" in done.stdout.splitlines()
    lines = [line for line in done.stderr.splitlines() if line.startswith("amdim_fast: ")]
    if said is None:
        assert lines == []
    else:
        assert len(lines) == 1
        assert lines[0].startswith("amdim_fast: views are built for CPUs")
        assert lines[0].endswith(said)
    if listed is not None:
        assert done.stdout.splitlines()[-1] == listed


def test_a_wheel_is_for_all_gpus():
    listed = re.search(r'ALL_GPUS = "(.*)"', (ROOT / "setup.py").read_text(encoding="utf-8"))[1]
    assert f'TORCH_CUDA_ARCH_LIST="$${{TORCH_CUDA_ARCH_LIST:-{listed}}}" $(BIN)' in MAKEFILE


def commands(workflow):
    return [s["run"] for job in workflow["jobs"].values() for s in job["steps"] if "run" in s]


def problems(text):
    """Actions of others, and commands that are no target of the Makefile."""
    workflow = yaml.safe_load(text)
    used = [s["uses"] for job in workflow["jobs"].values() for s in job["steps"] if "uses" in s]
    found = [name for name in used if name.partition("@")[0] not in ACTIONS]
    for command in commands(workflow):
        target = re.fullmatch(r"make ([\w-]+) PYTHON=python", command)
        if target is None or not re.search(rf"^{target[1]}:", MAKEFILE, re.MULTILINE):
            found.append(command)
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_runs_what_there_is(path):
    text = path.read_text(encoding="utf-8")
    assert problems(text) == []
    assert commands(yaml.safe_load(text))
    planted = re.sub(r"make [\w-]+", "make nothing", text)
    assert problems(planted)
    assert problems(text.replace("actions/checkout", "someone/checkout")) == ["someone/checkout@v4"]


def test_workflows_lint_test_and_package():
    run = {c.split()[1] for path in WORKFLOWS for c in commands(yaml.safe_load(path.read_text()))}
    assert {"lint", "test", "dist", "smoke-clean"} <= run


def test_workflows_test_the_oldest_python_that_is_supported():
    matrix = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]["cpu"]
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert matrix["strategy"]["matrix"]["python-version"][0] == oldest


def test_make_bench_runs_every_bench_of_the_cpu():
    listed = set(re.search(r"^BENCHES := (.*)$", MAKEFILE, re.MULTILINE)[1].split())
    found = {path.stem.removeprefix("bench_") for path in ROOT.glob("benchmarks/bench_*.py")}
    apart = set(re.findall(r"bench[-_](\w+)", MAKEFILE[: MAKEFILE.index("BENCHES")])) & found
    assert listed | apart == found
    assert not listed & apart

"""What README and docs show is true: blocks run, commands parse and run, links lead somewhere."""

import argparse
import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from torch.distributed.run import get_args_parser

from amdim_fast.cli.main import _parser
from amdim_fast.data.datasets import load_digits

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "amdim_public_32.pth"
DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCUMENTS]
PROGRAMS = r"(?:amdim-fast|torchrun|make|python -m benchmarks\.\w+)(?: .*)?"
NAMES = {path: str(path.relative_to(ROOT)) for path in PAGES}
TEXTS = {path: path.read_text(encoding="utf-8") for path in PAGES}


BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
BLOCKS = {
    f"{NAMES[path]} {number}": block
    for path in [ROOT / "README.md", *DOCUMENTS]
    for number, block in enumerate(BLOCK.findall(TEXTS[path]), 1)
}


def commands(text):
    """Command lines in sh blocks, indented lines and inline code, without comments."""
    fenced = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).splitlines()
    indented = re.findall(rf"^    ({PROGRAMS})$", text, re.MULTILINE)
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    inline = [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", plain)]
    inline = [code for code in inline if re.fullmatch(PROGRAMS, code)]
    found = [*filter(str.strip, fenced), *indented, *inline]
    return list(dict.fromkeys(re.split(r"\s+# ", line)[0].strip() for line in found))


COMMANDS = list(dict.fromkeys(line for text in TEXTS.values() for line in commands(text)))


def words(line):
    """Arguments of a command line; IMAGE... is one IMAGE, and ... nothing."""
    return [word for word in shlex.split(line.replace("IMAGE...", "IMAGE")) if word != "..."]


def options_of(parser):
    return {option for action in parser._actions for option in action.option_strings}


def command_parsers():
    return next(action.choices for action in _parser()._actions if hasattr(action.choices, "items"))


class Parsed(Exception):  # noqa: N818 - not an error
    """A script has read its command line."""


def check_amdim_fast(arguments):
    parsers = command_parsers()
    if arguments == ["--help"] or not arguments:
        return
    if len(arguments) > 1:
        _parser().parse_args(arguments)
    flags = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    assert flags <= options_of(parsers[arguments[0]]), flags - options_of(parsers[arguments[0]])


def check(line, monkeypatch):
    """Raise where a command names a program, target, module, option or value that is not there."""
    program, *arguments = words(line)
    if program == "amdim-fast":
        check_amdim_fast(arguments)
    elif program == "torchrun":
        parsed = get_args_parser().parse_args(arguments)
        assert parsed.module
        assert parsed.training_script == "amdim_fast"
        check_amdim_fast(parsed.training_script_args)
    elif program == "make":
        target = (arguments or ["demo"])[0]
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{target}:|^{target.partition('-')[0]}-%:", makefile, re.MULTILINE)
    else:
        assert (program, arguments[0]) == ("python", "-m")
        original = argparse.ArgumentParser.parse_args

        def parse_args(self, *given):
            original(self, *given)
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        module = importlib.import_module(arguments[1])
        if "ArgumentParser(" not in Path(module.__file__).read_text(encoding="utf-8"):
            assert arguments[2:] == []
            return
        with pytest.raises(Parsed):
            module.main(arguments[2:])


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_of_a_document_runs_alone(name):
    """As pasted into a fresh interpreter: it imports and makes all that it uses."""
    exec(BLOCKS[name], {})


@pytest.mark.parametrize("line", COMMANDS)
def test_command_parses(line, monkeypatch):
    check(line, monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        "amdim-fast pretrain --recipe digits --momentum 0.9",
        "amdim-fast pretrain --recipe digits --micro 250",
        "amdim-fast pretrain --recipe mnist",
        "amdim-fast evaluate --data digits",
        "amdim-fast train",
        "torchrun --processes=4 -m amdim_fast pretrain",
        "torchrun --nproc-per-node=4 -m amdim_fast pretrain --sync-batchnorm",
        "make everything",
        "python -m benchmarks.traffic --worlds 3",
        "python -m benchmarks.gpu --parts all",
    ],
)
def test_wrong_command_is_caught(line, monkeypatch, capsys):
    with pytest.raises((SystemExit, AssertionError, KeyError)):
        check(line, monkeypatch)
    found = commands(f"Text.\n\n```sh\n{line}  # comment\n```\n")
    assert found == [line]


def test_every_option_that_text_names_exists():
    options = set().union(*map(options_of, command_parsers().values()))
    named = {flag for text in TEXTS.values() for flag in re.findall(r"`(--[\w-]+)", text)}
    assert len(named) > 15
    assert named <= options


SMALL = ["--steps=2", "--ndf=4", "--n-rkhs=16", "--depth=1", "--batch-size=16", "--no-baselines"]
OVERRIDES = {
    "pretrain": SMALL,
    "evaluate": ["--probe-epochs=1", "--methods=knn"],
    "bench": ["--seconds=1", "--dim=16"],
}
RUNNER = """
import json, sys
from amdim_fast.cli.main import main
for arguments in json.load(sys.stdin):
    status = main(arguments)
    if status:
        sys.exit(f"{arguments}: exit status {status}")
"""


STAGES = ("pretrain", "resume", "pack", "export")


def runnable(lines):
    """Those that need no GPU, no data but the digits, and name what to work on."""
    for line in lines:
        program, *arguments = words(line)
        recipe = arguments[arguments.index("--recipe") + 1] if "--recipe" in arguments else "digits"
        if program != "amdim-fast" or {"DIR", "cuda", "..."} & set(arguments):
            continue
        if (len(arguments) > 1 and recipe == "digits") or arguments in (["info"], ["bench"]):
            yield arguments


def filled(arguments, files, name):
    """With files in place of what stands for them, and small overrides."""
    command, *rest = arguments
    stand_ins = files | ({"CHECKPOINT": files["MIXTURE"]} if command == "segment" else {})
    rest = [word for given in rest for word in stand_ins.get(given, [given])]
    if "--resume" in rest:
        return [command, *rest, *(["--steps=3"] if "--steps" in rest else [])]
    if command == "pretrain" and "--name" not in rest:
        rest += ["--name", name]
    if "--micro-batch" in rest:
        rest.append("--micro-batch=8")
    return [command, *rest, *OVERRIDES.get(command, [])]


def stage(arguments):
    """What a command writes, later ones read."""
    command = "resume" if "--resume" in arguments else arguments[0]
    return STAGES.index(command) if command in STAGES else len(STAGES)


def test_commands_run_on_digits(tmp_path):
    digits, pictures = load_digits().train, []
    for index in range(4):
        folder = tmp_path / "pictures" / str(index % 2)
        folder.mkdir(parents=True, exist_ok=True)
        pictures.append(str(folder / f"{index}.png"))
        Image.fromarray(digits.images[index].numpy()).save(pictures[-1])
    files = {
        "IMAGE": pictures,
        "SRC": [str(tmp_path / "pictures")],
        "DATA": [str(tmp_path / "pictures")],
        "OUT.npz": ["written.npz"],
        "DST": ["store"],
        "CHECKPOINT": ["runs/first/checkpoint.pt"],
        "CHECKPOINT_OR_EXPORT": ["runs/first/checkpoint.pt"],
        "MIXTURE": ["runs/mixture/checkpoint.pt"],
        "OUT_DIR": ["exported"],
        "runs/NAME": ["runs/first"],
        "amdim_cpt.pth": [str(GOLDEN)],
    }
    shown = enumerate(runnable(COMMANDS))
    found = [filled(arguments, files, f"run{number}") for number, arguments in shown]
    named = {arguments[0] for arguments in found}
    assert named == {
        *("pretrain", "evaluate", "embed", "segment", "export", "info", "bench", "pack", "views")
    }
    order = sorted([["pretrain", "--name=mixture", "--mixture=4", *SMALL], *found], key=stage)
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        cwd=tmp_path,
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json")}
    assert {"encoder/config.json", "runs/first/summary.json", "store/manifest.json"} <= written


def slugs(text):
    """Anchors of the headings of a document, as code hosts make them."""
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", plain, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path, text):
    """Targets of links and images that are not there."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        other = (path.parent / file).resolve() if file else path
        if not other.exists() or (
            anchor and anchor not in slugs(other.read_text(encoding="utf-8"))
        ):
            found.append(target)
    return found


@pytest.mark.parametrize("path", PAGES, ids=NAMES.get)
def test_links_lead_somewhere(path):
    assert broken_links(path, TEXTS[path]) == []


def test_broken_links_are_found():
    text = "[a](nowhere.md) [b](mathematics.md#one-cost) [c](mathematics.md#no-cost) [d](#here)"
    assert broken_links(ROOT / "docs" / "views.md", text) == [
        *("nowhere.md", "mathematics.md#no-cost", "#here")
    ]


def test_readme_links_every_page():
    text = TEXTS[ROOT / "README.md"]
    assert [page.name for page in DOCUMENTS if f"(docs/{page.name})" not in text] == []
    assert len(text.splitlines()) < 150

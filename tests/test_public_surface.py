"""What users hold on to by name is what it was: functions, ops, weights, files and commands.

``tests/golden/public_surface.json`` was written by the version before the package had folders;
``python -m tests.test_public_surface`` prints today's. Names may be added, none may go or change.

Of the private ops of the loss, the names ``nce_forward`` and ``nce_backward`` are of that version.
Their schemas are those of today's family, which has ``nce_objective`` and ``nce_scale_`` too and a
process group as an argument. The public names that came with it are in the record.
"""

import argparse
import inspect
import json
import os
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from PIL import Image

import amdim_fast
from amdim_fast.cli.main import _parser, main
from amdim_fast.training.recipes import Recipe
from amdim_fast.views.params import POLICIES

GOLDEN = Path(__file__).parent / "golden" / "public_surface.json"


def parameters_of(function):
    """Names, kinds and defaults, without annotations."""
    return [
        f"{p.name} ({p.kind.description})" + ("" if p.default is p.empty else f" = {p.default!r}")
        for p in inspect.signature(function).parameters.values()
    ]


def signatures():
    """Of every public function, class and method; None for properties, fields and data."""
    found = {}
    for name in amdim_fast.__all__:
        value = getattr(amdim_fast, name)
        has_parameters = callable(value) and not (
            inspect.isclass(value) and issubclass(value, Exception)
        )
        found[name] = parameters_of(value) if has_parameters else None
        for member, inner in vars(value).items() if inspect.isclass(value) else ():
            inner = getattr(inner, "__func__", inner)
            if not member.startswith("_"):
                is_function = inspect.isfunction(inner)
                found[f"{name}.{member}"] = parameters_of(inner) if is_function else None
    return found


def op_schemas():
    torch.ops.load_library(Path(amdim_fast.__file__).parent / "_cpu.so")
    schemas = torch._C._jit_get_all_schemas()
    return sorted(str(s) for s in schemas if s.name.startswith("amdim_fast::"))


def state_shapes():
    """Weights of small models: with probes, and with components too."""
    found = {}
    for size, components in ((32, 2), (64, None), (128, None)):
        model = amdim_fast.AMDIM(size, 8, 16, 2, n_classes=3, components=components)
        found[f"{size} px"] = {k: list(v.shape) for k, v in model.state_dict().items()}
        found[f"{size} px, hyperparams"] = sorted(model.hyperparams)
    return found


def options(parser, command="amdim-fast"):
    """Option -> what it takes, of the command and those below it."""
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                found |= options(child, f"{command} {name}")
        else:
            label = " ".join(action.option_strings) or action.dest
            choices = None if action.choices is None else sorted(map(str, action.choices))
            taken = [type(action).__name__, str(action.nargs), str(action.default), choices]
            found[f"{command}: {label}"] = taken
    return found


def files(folder):
    """Names of what pack, pretrain and export write, and the keys in it."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        for name in "ab":
            Path("pictures", name).mkdir(parents=True)
            for index in range(5):
                image = Image.new("RGB", (40, 40), (40 * index, 90, 10))
                image.save(Path("pictures", name, f"{index}.png"))
        small = [
            "--ndf",
            "8",
            "--n-rkhs",
            "16",
            "--depth",
            "1",
            "--batch-size",
            "4",
            "--epochs",
            "1",
            "--workers",
            "0",
        ]
        run = [
            "--recipe=folder",
            "--data-dir=pictures",
            "--policy=cifar",
            "--name=run",
            "--workers=0",
        ]
        assert main(["pack", "pictures", "store", "--size", "32"]) == 0
        assert main(["pretrain", *run, *small]) == 0
        assert main(["export", "runs/run/checkpoint.pt", "export"]) == 0
        checkpoint = torch.load("runs/run/checkpoint.pt", weights_only=True)
        record = json.loads(Path("runs/run/log.jsonl").read_text().splitlines()[0])
        found = {"checkpoint": sorted(checkpoint), "record": sorted(record)}
        for written in ("runs/run", "export", "store"):
            for path in sorted(Path(written).iterdir()):
                is_json = path.suffix == ".json"
                found[str(path)] = sorted(json.loads(path.read_text())) if is_json else []
        return found
    finally:
        os.chdir(before)


def surface(folder):
    return {
        "signatures": signatures(),
        "ops": op_schemas(),
        "weights": state_shapes(),
        "options": options(_parser()),
        "recipe": [field.name for field in fields(Recipe)],
        "policies": sorted(POLICIES),
        "files": files(folder),
    }


def losses(before, after, place=""):
    """Where ``after`` lacks or changes something of ``before``."""
    if isinstance(before, dict) and isinstance(after, dict):
        gone = [f"{place}/{name} is gone" for name in before.keys() - after.keys()]
        kept = before.keys() & after.keys()
        return gone + [
            s for name in kept for s in losses(before[name], after[name], f"{place}/{name}")
        ]
    if place.count("/") == 1 and isinstance(before, list):
        return [f"{place}: {item} is gone" for item in before if item not in after]
    return [] if before == after else [f"{place} is {after}, was {before}"]


@pytest.fixture(scope="module")
def today(tmp_path_factory):
    return json.loads(json.dumps(surface(tmp_path_factory.mktemp("surface"))))


def test_nothing_is_gone_or_changed(today):
    assert losses(json.loads(GOLDEN.read_text(encoding="utf-8")), today) == []


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("signatures", "nce_loss"),
        ("options", "amdim-fast pretrain: --seed"),
        ("weights", "64 px"),
        ("files", "export/config.json"),
        ("ops", None),
        ("recipe", None),
    ],
)
def test_a_loss_would_be_seen(today, part, name):
    before = json.loads(GOLDEN.read_text(encoding="utf-8"))
    changed = json.loads(json.dumps(today))
    if name is None:
        changed[part][0] += "!"
    elif isinstance(changed[part][name], dict):
        changed[part][name].popitem()
    else:
        changed[part][name].pop()
    assert len(losses(before, changed)) == 1


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        json.dump(surface(Path(scratch)), sys.stdout, indent=1)

"""What the README and the documents in docs/ show runs as shown."""

import re
from pathlib import Path

import pytest
import torch

from amdim_fast import nce_loss

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))


def blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run_blocks(path):
    """Names after running all blocks of a document, one after another."""
    names = {}
    for block in blocks(path.read_text(encoding="utf-8")):
        exec(block, names)
    return names


BLOCKS = blocks(README)


def test_usage_runs():
    names = {}
    exec(BLOCKS[0], names)
    assert all(tensor.grad is not None for tensor in names["maps"])


def test_equivalent_lines_are_equivalent():
    src, trg, clip = torch.randn(5, 8).double(), torch.randn(5, 3, 8).double(), 7.0
    names = {"torch": torch, "src": src, "trg": trg, "c": clip, "D": 8}
    names["own"] = torch.eye(5, dtype=torch.bool)
    exec(BLOCKS[1], names)
    torch.testing.assert_close(names["loss"], nce_loss(src, trg, clip=clip)[0])


@pytest.mark.parametrize("command", re.findall(r"^make (\w+)", README, re.MULTILINE))
def test_make_targets_exist(command):
    assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_named_files_exist():
    for name in re.findall(r"^    (\S+)  ", README, re.MULTILINE):
        assert list(ROOT.glob(name.rstrip("/"))), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_of_a_document_runs(path):
    run_blocks(path)


def test_st_dim_is_its_loops_over_locations():
    """A bilinear score and a softmax over images at each location, as ST-DIM has them."""
    st_dim = run_blocks(ROOT / "docs" / "mixtures.md")["st_dim"]
    now, then = torch.randn(2, 5, 6, 3, 4, dtype=torch.float64)
    summary = torch.randn(5, 8, dtype=torch.float64)
    of_global = torch.nn.Linear(8, 6).double()
    of_local = torch.nn.Linear(6, 6).double()
    parameters = [*of_global.parameters(), *of_local.parameters()]
    total = 0.0
    for y in range(3):
        for x in range(4):
            positives = then[:, :, y, x].T
            for prediction in (of_global(summary), of_local(now[:, :, y, x])):
                total += torch.nn.functional.cross_entropy(prediction @ positives, torch.arange(5))
    looped = total / 12
    ours = st_dim(summary, now, then, of_global, of_local)
    torch.testing.assert_close(ours, looped)
    grads = [torch.autograd.grad(loss, parameters) for loss in (ours, looped)]
    torch.testing.assert_close(*grads)

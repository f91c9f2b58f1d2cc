"""What the README shows runs as shown; ``test_documents.py`` has commands, links and docs."""

import re
from pathlib import Path

import torch

from amdim_fast import nce_loss

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


BLOCKS = blocks(README)


def test_usage_runs():
    names = {}
    exec(BLOCKS[0], names)
    assert all(tensor.grad is not None for tensor in names["maps"])


def test_equivalent_lines_are_equivalent():
    names = {}
    exec(BLOCKS[1], names)
    loss, _ = nce_loss(names["src"], names["trg"], clip=names["c"])
    torch.testing.assert_close(names["loss"], loss)
    assert names["c"] * 0.9 > loss > 1


def test_named_files_exist():
    for name in re.findall(r"^    (\S+)  ", README, re.MULTILINE):
        assert list(ROOT.glob(name.rstrip("/"))), name

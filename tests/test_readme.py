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
    src, trg, clip = torch.randn(5, 8).double(), torch.randn(5, 3, 8).double(), 7.0
    names = {"torch": torch, "src": src, "trg": trg, "c": clip, "D": 8}
    names["own"] = torch.eye(5, dtype=torch.bool)
    exec(BLOCKS[1], names)
    torch.testing.assert_close(names["loss"], nce_loss(src, trg, clip=clip)[0])


def test_named_files_exist():
    for name in re.findall(r"^    (\S+)  ", README, re.MULTILINE):
        assert list(ROOT.glob(name.rstrip("/"))), name

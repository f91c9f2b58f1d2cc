"""The sources compile with the oldest torch that setup.py names.

``TORCH_TARGET_VERSION`` hides newer functions of the stable ABI; its macros are there in any case.
"""

import re
from pathlib import Path

CSRC = Path(__file__).parents[2] / "csrc"
# Macros of torch that are in the headers of torch 2.10.
OLDEST = {
    "AOTI_TORCH_SUCCESS",
    "STABLE_TORCH_LIBRARY_FRAGMENT",
    "STABLE_TORCH_LIBRARY_IMPL",
    "STD_TORCH_CHECK",
    "TORCH_ABI_VERSION",
    "TORCH_BOX",
    "TORCH_ERROR_CODE_CHECK",
}
MACRO = re.compile(r"\b(?:\w+_)?(?:AT|AOTI|C10|STABLE|STD|TORCH)_[A-Z0-9_]+\b")


def test_macros_are_those_of_the_oldest_torch():
    used = {name for path in CSRC.rglob("*.*") for name in MACRO.findall(path.read_text())}
    newer = used - OLDEST
    assert not newer, f"unless torch 2.10 defines {newer}, its users cannot build; if so, add them"
    assert used == OLDEST

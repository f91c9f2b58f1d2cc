"""The torch.library handle of the contrastive ops, and the registration of one op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("amdim_fast", "FRAGMENT")


def register(name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define ``amdim_fast::name`` with one implementation for all devices, and its fake."""
    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"amdim_fast::{name}", fake, lib=LIBRARY)


def register_autograd(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., Any] | None = None
) -> None:
    """Give ``amdim_fast::name`` its backward."""
    torch.library.register_autograd(
        f"amdim_fast::{name}", backward, setup_context=setup_context, lib=LIBRARY
    )

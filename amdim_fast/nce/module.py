"""The base of the loss modules: the options that they share."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed import ProcessGroup

from amdim_fast.nce import op
from amdim_fast.nce.clip import clip_value
from amdim_fast.nce.inputs import check_options, group_name


class NCEModule(nn.Module):
    """Options of a loss module; no parameters and no buffers.

    The process group is kept by name, so that the module can be copied and saved.
    """

    def __init__(
        self,
        *,
        tclip: float | None,
        memory_budget: int | None,
        backend: str,
        precision: str,
        group: ProcessGroup | None,
    ) -> None:
        super().__init__()
        check_options(tclip, "tclip", backend, precision, memory_budget)
        self.tclip = tclip
        self.memory_budget = memory_budget
        self.backend = backend
        self.precision = precision
        self.group_name = group_name(group)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *options: Any, **named: Any
    ) -> None:
        """Strict loading of the public code's files: its loss had masks, which are left out."""
        kept = {name: value for name, value in state_dict.items() if name != f"{prefix}masks_r5"}
        super()._load_from_state_dict(kept, prefix, *options, **named)

    def _settings(self) -> op.Settings:
        """The module's options as the op takes them."""
        return op.Settings(
            clip=clip_value(self.tclip),
            same_location=False,
            backend=self.backend,
            precision=self.precision,
            memory_budget=self.memory_budget,
        )

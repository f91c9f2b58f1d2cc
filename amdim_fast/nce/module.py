"""The base of the loss modules: the options that they share, and their call of the op."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from amdim_fast.nce import op
from amdim_fast.nce.clip import clip_value
from amdim_fast.nce.inputs import budget_value, check_options, group_name


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
        group: ProcessGroup | None,
    ) -> None:
        super().__init__()
        check_options(tclip, "tclip", backend, memory_budget)
        self.tclip = tclip
        self.memory_budget = memory_budget
        self.backend = backend
        self.group_name = group_name(group)

    def _nce_forward(
        self,
        srcs: Sequence[Tensor],
        trgs: Sequence[Tensor],
        *,
        locations: Sequence[Tensor] = (),
        origins: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``op.nce_forward`` with the module's options."""
        return op.nce_forward(
            srcs,
            trgs,
            locations=locations,
            origins=origins,
            clip=clip_value(self.tclip),
            backend=self.backend,
            memory_budget=budget_value(self.memory_budget),
            group_name=self.group_name,
        )

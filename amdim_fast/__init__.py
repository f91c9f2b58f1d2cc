"""AMDIM: contrastive loss, views, encoder and pre-training, exact to the original.

``nce_log_prob`` and ``LossMultiNCE`` are the loss, ``sample_view_params`` and ``augment`` the
views, ``AMDIM`` the model; ``load_checkpoint`` reads ours and the original's files, ``pretrain`` is
the whole job. Importing the package loads neither triton nor a compiled library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from amdim_fast.functional import NCEOutput, nce_log_prob, nce_loss
from amdim_fast.losses import LossMultiNCE
from amdim_fast.ops.plan import last_plan

if TYPE_CHECKING:
    from amdim_fast.augmentation import TwoViews, augment, sample_view_params
    from amdim_fast.checkpoint import load_checkpoint, save_checkpoint
    from amdim_fast.encoder import Encoder
    from amdim_fast.model import AMDIM
    from amdim_fast.pretraining import pretrain
    from amdim_fast.views import ViewParams

__version__ = "0.1.0"

_LAZY = {
    "AMDIM": "model",
    "Encoder": "encoder",
    "TwoViews": "augmentation",
    "ViewParams": "views",
    "augment": "augmentation",
    "load_checkpoint": "checkpoint",
    "pretrain": "pretraining",
    "sample_view_params": "augmentation",
    "save_checkpoint": "checkpoint",
}

__all__ = [
    "AMDIM",
    "Encoder",
    "LossMultiNCE",
    "NCEOutput",
    "TwoViews",
    "ViewParams",
    "augment",
    "last_plan",
    "load_checkpoint",
    "nce_log_prob",
    "nce_loss",
    "pretrain",
    "sample_view_params",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    """Import the rest of the package when it is first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)

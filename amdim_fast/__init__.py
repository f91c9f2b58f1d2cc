"""AMDIM: contrastive loss, views, encoder and pre-training, exact to the original.

``nce_log_prob`` and ``LossMultiNCE`` are the loss, ``sample_view_params`` and ``augment`` the
views, ``AMDIM`` the model; ``load_checkpoint`` reads ours and the original's files, ``pretrain`` is
the whole job. Importing the package loads neither triton nor a compiled library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from amdim_fast.nce.feature_map_task import FeatureMapContrastiveTask
from amdim_fast.nce.functional import NCEOutput, nce_log_prob, nce_loss
from amdim_fast.nce.losses import LossMultiNCE
from amdim_fast.nce.mixture import MixtureHead, MixtureLosses, MixtureNCELoss, responsibilities
from amdim_fast.nce.plan import last_plan
from amdim_fast.version import __version__ as __version__

if TYPE_CHECKING:
    from amdim_fast.checkpoints.checkpoint import load_checkpoint, save_checkpoint
    from amdim_fast.evaluation.evaluate import evaluate
    from amdim_fast.evaluation.scoring import EvaluationOptions
    from amdim_fast.model.amdim import AMDIM
    from amdim_fast.model.encoder import Encoder
    from amdim_fast.model.export import export_encoder
    from amdim_fast.model.pretrained import load_pretrained
    from amdim_fast.training.run import pretrain
    from amdim_fast.views.augment import TwoViews, augment, sample_view_params
    from amdim_fast.views.params import ViewParams
    from amdim_fast.views.preprocessing import Preprocessing

_LAZY = {
    "AMDIM": "model.amdim",
    "Encoder": "model.encoder",
    "EvaluationOptions": "evaluation.scoring",
    "TwoViews": "views.augment",
    "Preprocessing": "views.preprocessing",
    "ViewParams": "views.params",
    "augment": "views.augment",
    "evaluate": "evaluation.evaluate",
    "export_encoder": "model.export",
    "load_checkpoint": "checkpoints.checkpoint",
    "load_pretrained": "model.pretrained",
    "pretrain": "training.run",
    "sample_view_params": "views.augment",
    "save_checkpoint": "checkpoints.checkpoint",
}

__all__ = [
    "AMDIM",
    "Encoder",
    "EvaluationOptions",
    "FeatureMapContrastiveTask",
    "LossMultiNCE",
    "MixtureHead",
    "MixtureLosses",
    "MixtureNCELoss",
    "NCEOutput",
    "Preprocessing",
    "TwoViews",
    "ViewParams",
    "augment",
    "evaluate",
    "export_encoder",
    "last_plan",
    "load_checkpoint",
    "load_pretrained",
    "nce_log_prob",
    "nce_loss",
    "pretrain",
    "responsibilities",
    "sample_view_params",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    """Import the rest of the package when it is first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)

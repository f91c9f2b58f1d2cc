"""AMDIM: contrastive loss, views, encoder and pre-training, exact to the original.

``nce_log_prob`` and ``LossMultiNCE`` are the loss, ``sample_view_params`` and ``augment`` the
views, ``AMDIM`` the model; ``load_checkpoint`` reads our files and the original's, ``pretrain``
runs a whole training. Importing the package loads neither triton nor a compiled library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from amdim_fast.nce.feature_map_task import FeatureMapContrastiveTask
from amdim_fast.nce.functional import (
    NCEObjective,
    NCEOutput,
    nce_log_prob,
    nce_loss,
    nce_objective,
)
from amdim_fast.nce.losses import LossMultiNCE, MultiNCEObjective
from amdim_fast.nce.mixture import MixtureHead, MixtureLosses, MixtureNCELoss, responsibilities
from amdim_fast.nce.plan import last_plan
from amdim_fast.version import __version__ as __version__

if TYPE_CHECKING:
    from amdim_fast.checkpoints.formats import CheckpointError
    from amdim_fast.data.datasets import load_data
    from amdim_fast.data.loader import training_batches
    from amdim_fast.evaluation.embed import embed
    from amdim_fast.evaluation.evaluate import evaluate
    from amdim_fast.evaluation.scoring import EvaluationOptions
    from amdim_fast.model.amdim import AMDIM
    from amdim_fast.model.backbone import BackboneEncoder
    from amdim_fast.model.encoder import Encoder
    from amdim_fast.model.export import export_encoder
    from amdim_fast.model.export_program import export_program
    from amdim_fast.model.gradient_cache import CachedEncoding
    from amdim_fast.model.pretrained import load_checkpoint, load_pretrained, save_checkpoint
    from amdim_fast.segmentation.posterior import posterior_maps
    from amdim_fast.training.pretrain import pretrain
    from amdim_fast.training.recipes import RECIPES, Recipe
    from amdim_fast.views.augment import augment
    from amdim_fast.views.params import POLICIES, ViewParams
    from amdim_fast.views.preprocessing import Preprocessing
    from amdim_fast.views.sampling import sample_view_params
    from amdim_fast.views.two_views import TwoViews

# Where the names above are, for the first use of each at run time.
_LAZY = {
    "AMDIM": "model.amdim",
    "BackboneEncoder": "model.backbone",
    "CachedEncoding": "model.gradient_cache",
    "CheckpointError": "checkpoints.formats",
    "Encoder": "model.encoder",
    "EvaluationOptions": "evaluation.scoring",
    "POLICIES": "views.params",
    "Preprocessing": "views.preprocessing",
    "RECIPES": "training.recipes",
    "Recipe": "training.recipes",
    "TwoViews": "views.two_views",
    "ViewParams": "views.params",
    "augment": "views.augment",
    "embed": "evaluation.embed",
    "evaluate": "evaluation.evaluate",
    "export_encoder": "model.export",
    "export_program": "model.export_program",
    "load_checkpoint": "model.pretrained",
    "load_data": "data.datasets",
    "load_pretrained": "model.pretrained",
    "posterior_maps": "segmentation.posterior",
    "pretrain": "training.pretrain",
    "sample_view_params": "views.sampling",
    "save_checkpoint": "model.pretrained",
    "training_batches": "data.loader",
}

__all__ = [
    "AMDIM",
    "POLICIES",
    "RECIPES",
    "BackboneEncoder",
    "CachedEncoding",
    "CheckpointError",
    "Encoder",
    "EvaluationOptions",
    "FeatureMapContrastiveTask",
    "LossMultiNCE",
    "MixtureHead",
    "MixtureLosses",
    "MixtureNCELoss",
    "MultiNCEObjective",
    "NCEObjective",
    "NCEOutput",
    "Preprocessing",
    "Recipe",
    "TwoViews",
    "ViewParams",
    "augment",
    "embed",
    "evaluate",
    "export_encoder",
    "export_program",
    "last_plan",
    "load_checkpoint",
    "load_data",
    "load_pretrained",
    "nce_log_prob",
    "nce_loss",
    "nce_objective",
    "posterior_maps",
    "pretrain",
    "responsibilities",
    "sample_view_params",
    "save_checkpoint",
    "training_batches",
]


def __getattr__(name: str) -> Any:
    """Import the rest of the package on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)

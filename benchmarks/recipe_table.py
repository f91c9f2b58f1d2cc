"""The recipes as a table, from their fields; parameters are counted on models without memory."""

from __future__ import annotations

from functools import lru_cache

import torch

from amdim_fast.model.encoder import Encoder
from amdim_fast.training.recipes import RECIPES, Recipe
from amdim_fast.views.params import POLICIES
from benchmarks.rows import Rows, table


@lru_cache
def parameters(size: int, ndf: int, n_rkhs: int, depth: int) -> int:
    """Of an encoder, its heads for local features included."""
    with torch.device("meta"):
        encoder = Encoder(size, ndf, n_rkhs, depth)
    return sum(parameter.numel() for parameter in encoder.parameters())


def recipe_table(_rows: Rows) -> str:
    """One line a recipe."""
    header = [
        "",
        "pixels",
        "ndf/n_rkhs/depth",
        "parameters, calculated",
        "batch",
        "length",
        "decay",
    ]
    return table(header, [[name, *_cells(recipe)] for name, recipe in RECIPES.items()])


def _cells(recipe: Recipe) -> list[str]:
    size, sizes = POLICIES[recipe.policy].size, (recipe.ndf, recipe.n_rkhs, recipe.depth)
    length = f"{recipe.steps} steps" if recipe.steps else f"{recipe.epochs} epochs"
    return [
        str(size),
        "/".join(map(str, sizes)),
        f"{parameters(size, *sizes) / 1e6:.1f} M",
        str(recipe.batch_size),
        length,
        ", ".join(map(str, recipe.milestones)),
    ]

"""The one torch.library handle through which the package registers its Python ops."""

import torch

LIBRARY = torch.library.Library("amdim_fast", "FRAGMENT")

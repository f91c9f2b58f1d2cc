"""AMDIM: encoder, contrastive loss and optional probes in one module.

Source: the public code's ``model.Model``, whose hyperparameter names it keeps.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from amdim_fast.checkpoints.formats import CheckpointError
from amdim_fast.checkpoints.reading import read_model
from amdim_fast.checkpoints.stored_model import StoredModel
from amdim_fast.distributed.agreement import ErrorsOnAllRanks
from amdim_fast.model.amdim_output import AMDIMOutput
from amdim_fast.model.backbone import AnyEncoder, BackboneEncoder
from amdim_fast.model.encoder import Encoder, EncoderOutput, encode_views
from amdim_fast.model.frozen import encode
from amdim_fast.model.probes import Probes
from amdim_fast.nce.losses import LossMultiNCE
from amdim_fast.nce.mixture import MixtureHead, MixtureLosses, MixtureNCELoss
from amdim_fast.views.images import Picture
from amdim_fast.views.preprocessing import Preprocessing


class AMDIM(nn.Module):
    """Encoder, contrastive loss and, if classes are given, probes.

    Args:
        size: height and width of the images: 32, 64 or 128.
        ndf: width of the first layer.
        n_rkhs: D, width of the features.
        depth: layers in each residual block.
        use_bn: BatchNorm inside the encoder's blocks too.
        in_channels: channels of the images.
        n_classes: classes of the probes; None builds none.
        tclip: bound on |score| in nats, or None. 20 is the public training script's.
        reg_weight: weight of the mean squared raw scores: 5e-2 in the public code, 4e-2 in the
            paper.
        group: process group, passed to the loss; the images of all its ranks are negatives. Not
            stored in checkpoints.
        components: K, components of each global feature; None is the plain objective.
        mixture_hidden: width of the hidden layer that makes them; None is n_rkhs.
        tau: inverse temperature of the posterior over components.
        alpha: weight of its entropy; None is 1/tau.

    Raises:
        ValueError: an argument is out of range.

    Attributes:
        encoder: ``Encoder``, or ``BackboneEncoder`` with ``over``; x -> (r1, r5, r7).
        evaluator: ``Probes`` or None; r1 -> (logits_mlp, logits_linear), no gradient to r1. May be
            replaced, for other classes.
        g2l_loss: ``LossMultiNCE``, or ``MixtureNCELoss`` with components.
        mixture: ``MixtureHead`` or None; r1 -> [K, B, D].
        preprocessing: how uint8 images become the encoder's input, for ``encode``; None unless
            ``from_pretrained`` or the user set it. Not stored in checkpoints.
    """

    def __init__(
        self,
        size: int,
        ndf: int,
        n_rkhs: int,
        depth: int,
        use_bn: bool = False,
        in_channels: int = 3,
        n_classes: int | None = None,
        tclip: float | None = 20.0,
        reg_weight: float = 5e-2,
        group: ProcessGroup | None = None,
        components: int | None = None,
        mixture_hidden: int | None = None,
        tau: float = 5.0,
        alpha: float | None = None,
    ) -> None:
        super().__init__()
        self._add_parts(
            Encoder(size, ndf, n_rkhs, depth, use_bn, in_channels),
            n_classes=n_classes,
            tclip=tclip,
            reg_weight=reg_weight,
            group=group,
            components=components,
            mixture_hidden=mixture_hidden,
            tau=tau,
            alpha=alpha,
        )

    def _add_parts(
        self,
        encoder: AnyEncoder,
        *,
        n_classes: int | None = None,
        tclip: float | None = 20.0,
        reg_weight: float = 5e-2,
        group: ProcessGroup | None = None,
        components: int | None = None,
        mixture_hidden: int | None = None,
        tau: float = 5.0,
        alpha: float | None = None,
    ) -> None:
        self.encoder, n_rkhs = encoder, encoder.n_rkhs
        self.evaluator = None if n_classes is None else Probes(n_rkhs, n_classes)
        self.mixture: MixtureHead | None = None
        self.g2l_loss: LossMultiNCE | MixtureNCELoss
        if components is None:
            self.g2l_loss = LossMultiNCE(tclip=tclip, reg_weight=reg_weight, group=group)
        else:
            self.mixture = MixtureHead(n_rkhs, components, mixture_hidden)
            self.g2l_loss = MixtureNCELoss(tau, alpha, tclip, reg_weight, group)
        self.preprocessing: Preprocessing | None = None

    @classmethod
    def over(cls, encoder: BackboneEncoder, **options: Any) -> AMDIM:
        """AMDIM whose encoder is over another network.

        Args:
            encoder: with the sizes.
            options: the constructor's other arguments, from ``n_classes`` on.
        """
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model._add_parts(encoder, **options)
        return model

    @staticmethod
    def from_pretrained(
        path: str | os.PathLike[str],
        map_location: str | torch.device = "cpu",
        *,
        policy: str | None = None,
    ) -> AMDIM:
        """The model of an export or a checkpoint, ready to ``encode`` images.

        Args:
            path: the folder of an export, a file in it, or a checkpoint that ``load_checkpoint``
                reads.
            map_location: device for the model.
            policy: name in ``POLICIES`` of the test-time transform; None is the one that the file
                states or, where it states none, the original's for the size: cifar at 32 px, stl10
                at 64, imagenet128 at 128.

        Returns:
            AMDIM in training mode, ``preprocessing`` set. An export holds only the encoder and its
            components: the model has no probes and, without components, a loss with default
            arguments.

        Raises:
            FileNotFoundError: there is no such file. CheckpointError: it is damaged, or not of
                an AMDIM. ValueError: there is no such policy, or it is for another size.
        """
        stored = read_model(path)
        model = AMDIM.from_stored(stored, map_location)
        model.preprocessing = stored.preprocessing_for(policy)
        return model

    @staticmethod
    def from_stored(stored: StoredModel, map_location: str | torch.device = "cpu") -> AMDIM:
        """The model that was read from a file, in training mode, without ``preprocessing``.

        The default random generator is left as it was.

        Raises:
            CheckpointError: the arguments or weights are not those of an AMDIM; names the keys.
        """
        over = "backbone" in stored.arguments
        try:
            # Shapes are compared first, so that sizes which the file only claims take no memory;
            # a backbone's sizes are its name's, and not every one can be built without memory.
            place = contextlib.nullcontext() if over else torch.device("meta")
            with torch.random.fork_rng(devices=[]), place:
                model = _built(stored.arguments)
        except (IndexError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{stored.source} has hyperparameters that fit no AMDIM: {error}"
            ) from error
        stored.check_fits(model.state_dict(), model.hyperparams)
        if not over:
            with torch.random.fork_rng(devices=[]):
                model = _built(stored.arguments)
        model.load_state_dict(stored.state)
        if model.evaluator is not None:
            model.evaluator.class_names = stored.class_names
        return model.to(map_location)

    def encode(self, images: Picture | Sequence[Picture]) -> Tensor:
        """Global features [N, D] of images, in evaluation mode and without gradients.

        Args:
            images: uint8 [N, H, W, 3], [N, 3, H, W] or N tensors [H, W, 3], which
                ``preprocessing`` resizes, crops and normalizes; or normalized floating point
                [N, in_channels, size, size]. NumPy arrays and Pillow images work too, and one image
                without N. All are encoded in one batch: split large sets.

        Returns:
            [N, D], or [D] of one image; dtype and device of the encoder. The modes of its modules
            are restored.

        Raises:
            ValueError: a shape does not fit, or the model has no ``preprocessing`` for uint8.
            TypeError: images are neither uint8 nor of the encoder's dtype.
        """
        return encode(self.encoder, images, self.preprocessing)

    @property
    def hyperparams(self) -> dict[str, int | float | bool | str | None]:
        """What rebuilds this model, under the public code's names where it has them."""
        encoder = self.encoder
        plain: dict[str, int | float | bool | str | None] = {
            "n_classes": None if self.evaluator is None else self.evaluator.n_classes,
            "n_rkhs": encoder.n_rkhs,
            "tclip": self.g2l_loss.tclip,
            "encoder_size": encoder.size,
            "in_channels": encoder.in_channels,
            "reg_weight": self.g2l_loss.reg_weight,
        }
        if isinstance(encoder, Encoder):
            plain |= {"ndf": encoder.ndf, "n_depth": encoder.depth, "use_bn": encoder.use_bn}
        else:
            plain["backbone"] = encoder.backbone
        if self.mixture is None or not isinstance(self.g2l_loss, MixtureNCELoss):
            return plain
        return plain | {
            "components": self.mixture.components,
            "mixture_hidden": self.mixture.hidden,
            "tau": self.g2l_loss.tau,
            "alpha": self.g2l_loss.alpha,
        }

    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        *,
        locations: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> AMDIMOutput:
        """The objective for two views of the same B images.

        BatchNorm's statistics are per view, as in the public code; other layers see both views at
        once.

        Args:
            x1: [B, in_channels, size, size].
            x2: the other view of the same images in the same order.
            locations: [B] int64 5x5 locations of each view's 5->5 sources; None draws them.
            generator: for the draw.

        Returns:
            AMDIMOutput; its ``loss`` is the total.

        Raises:
            ValueError: a shape is wrong or the views disagree. TypeError: a dtype is wrong.
        """
        with ErrorsOnAllRanks(self.g2l_loss.group_name):
            if x1.shape != x2.shape:
                raise ValueError(
                    f"x1 has shape {list(x1.shape)} and x2 {list(x2.shape)}; they must be equal"
                )
            # torch.stack would lose channels_last.
            views = torch.cat((x1, x2)).unflatten(0, (2, -1))
            first, second = encode_views(self.encoder, views)
        if isinstance(self.g2l_loss, LossMultiNCE):
            loss_1t5, loss_1t7, loss_5t5, lgt_reg = self.g2l_loss(
                *first, *second, locations=locations, generator=generator
            )
            return AMDIMOutput(loss_1t5, loss_1t7, loss_5t5, lgt_reg, first.r1, second.r1)
        return self.objective(first, second, locations=locations, generator=generator)

    def objective(
        self,
        first: EncoderOutput,
        second: EncoderOutput,
        *,
        locations: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> AMDIMOutput:
        """The objective from the features of the two views, for ``loss.backward()``.

        Values are those of ``forward``. Without components, ``loss`` comes with its gradients from
        one pass, as in ``LossMultiNCE.objective``, and the four parts are detached.
        """
        if isinstance(self.g2l_loss, LossMultiNCE):
            made = self.g2l_loss.objective(
                *first, *second, locations=locations, generator=generator
            )
            return AMDIMOutput(
                made.loss_1t5,
                made.loss_1t7,
                made.loss_5t5,
                made.lgt_reg,
                first.r1,
                second.r1,
                total=made.objective,
            )
        assert self.mixture is not None
        components = self.mixture(first.r1), self.mixture(second.r1)
        found: MixtureLosses = self.g2l_loss(
            *(components[0], *first[1:]),
            *(components[1], *second[1:]),
            locations=locations,
            generator=generator,
        )
        return AMDIMOutput(*found[:4], first.r1, second.r1, found.entropy, found.usage)


def _built(arguments: Mapping[str, Any]) -> AMDIM:
    """The model of ``StoredModel.arguments``."""
    left = dict(arguments)
    if "backbone" not in left:
        return AMDIM(**left)
    own = [left.pop(name) for name in ("backbone", "size", "n_rkhs", "in_channels")]
    return AMDIM.over(BackboneEncoder(*own), **left)

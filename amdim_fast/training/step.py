"""One step of training: what it reads, what it changes, and its state."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from amdim_fast.data.loader import Batch
from amdim_fast.devices import computes_bfloat16, describe_device
from amdim_fast.distributed.agreement import ErrorsOnAllRanks
from amdim_fast.distributed.ranks import Ranks
from amdim_fast.model.amdim import AMDIM
from amdim_fast.model.backbone import BackboneEncoder
from amdim_fast.model.encoder import encode_views
from amdim_fast.model.gradient_cache import CachedEncoding
from amdim_fast.model.probes import probe_loss
from amdim_fast.nce.backend import resolve_backend
from amdim_fast.nce.feature_maps import draw_locations
from amdim_fast.training.graph import StepGraph, uses_graph
from amdim_fast.training.randomness import seed_step
from amdim_fast.training.recipes import Recipe
from amdim_fast.views.two_views import TwoViews

LOSS_TERMS = ("loss_1t5", "loss_1t7", "loss_5t5", "lgt_reg")
MIXTURE_TERMS = ("posterior_entropy", "usage_entropy")  # nats
PROBE_TERMS = ("probe_mlp", "probe_linear")
LOCATIONS = 25  # of the 5x5 map
COUNTS = ("correct_mlp", "correct_linear", "labeled")
# The option by which the forward copies rank 0's buffers, renamed in torch 2.14.
_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


def build_model(recipe: Recipe, n_classes: int | None, group: ProcessGroup | None = None) -> AMDIM:
    """The model of a recipe, with online probes where there are classes."""
    size = recipe.view_policy.size
    options: dict[str, Any] = {
        "n_classes": n_classes,
        "group": group,
        "tclip": recipe.tclip,
        "reg_weight": recipe.reg_weight,
        "components": recipe.mixture or None,
        "tau": recipe.tau,
    }
    if recipe.backbone is not None:
        own = recipe.backbone, size, recipe.n_rkhs, recipe.channels
        return AMDIM.over(BackboneEncoder(*own), **options)
    sizes = recipe.ndf, recipe.n_rkhs, recipe.depth, recipe.use_bn, recipe.channels
    return AMDIM(size, *sizes, **options)


def uses_bfloat16(recipe: Recipe, device: torch.device) -> bool:
    """Whether encoder and loss run under autocast to bfloat16."""
    if recipe.precision == "auto":
        return computes_bfloat16(device)
    return recipe.precision == "bfloat16"


class Training:
    """Model, optimizer, random generators and step; ``state`` has all but the model.

    As in the public code, one Adam updates the encoder and the online probes at one rate, and
    both views of a labeled image are examples of the probes, which see detached features.

    Args:
        model: on its device.
        recipe: everything but the sizes, which are the model's.
        images: number of training images.
        seed: seed of views and 5x5 locations; the model's weights have been drawn already.
        ranks: the processes that share each batch; all construct and update together, with the same
            model. DistributedDataParallel averages the encoder's gradients during the backward;
            those of the probes and the mixture head, which it does not wrap, are averaged
            afterward. Buffers stay each process's own.

    Attributes:
        step: steps done.
        names: names of the values that ``update`` returns.
    """

    def __init__(
        self, model: AMDIM, recipe: Recipe, images: int, seed: int, ranks: Ranks | None = None
    ) -> None:
        self.model, self.recipe = model, recipe
        self.ranks = ranks or Ranks()
        self.seed = seed
        self.step = 0
        self.steps_per_epoch = recipe.steps_per_epoch(images)
        self.total_steps = recipe.total_steps(images)
        trained = [model.encoder] if model.mixture is None else [model.encoder, model.mixture]
        self._parameters = [p for part in trained for p in part.parameters() if p.requires_grad]
        self.device = self._parameters[0].device
        self._bfloat16 = uses_bfloat16(recipe, self.device)
        is_graph = uses_graph(recipe, model, self.device, self.ranks)
        probes = [] if model.evaluator is None else list(model.evaluator.parameters())
        self.optimizer = torch.optim.Adam(
            [{"params": parameters} for parameters in (self._parameters, probes) if parameters],
            lr=recipe.learning_rate,
            betas=(recipe.beta1, recipe.beta2),
            eps=recipe.epsilon,
            weight_decay=recipe.weight_decay,
            fused=True,
            capturable=is_graph,
        )
        self._graph = StepGraph(self._learn, self.device) if is_graph else None
        self._view_generator = torch.Generator().manual_seed(seed)
        self._drawn = -1, self._view_generator.get_state()
        self._location_generator = torch.Generator(self.device).manual_seed(seed)
        dtype = torch.bfloat16 if self._bfloat16 else torch.float32
        self._two_views = TwoViews(recipe.view_policy, dtype=dtype, channels_last=True)
        self.names = (
            LOSS_TERMS
            + (() if model.mixture is None else MIXTURE_TERMS)
            + ((*PROBE_TERMS, *COUNTS) if probes else ())
        )
        model.encoder.checkpoint_blocks = recipe.checkpoint_blocks
        if recipe.compile:
            model.encoder.compile()
        model.train()
        if recipe.freeze_bn:
            for module in model.encoder.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        self._encoder = self._shared(model.encoder)
        self._small = [
            p for part in (model.mixture, model.evaluator) if part for p in part.parameters()
        ]

    def _shared(self, encoder: nn.Module) -> nn.Module:
        """The encoder; with several processes, one whose backward averages gradients."""
        group = self.ranks.group
        if group is None:
            return encoder
        if self.recipe.sync_bn:
            # It imports torch's compiler, which takes seconds.
            from amdim_fast.model.sync_batchnorm import synchronize_batchnorm

            synchronize_batchnorm(self.model, group.group_name)
        options: dict[str, Any] = {"gradient_as_bucket_view": True, _BUFFERS: False}
        return DistributedDataParallel(encoder, process_group=group, **options)

    def views(self, batch: Batch) -> Tensor:
        """Two views of a batch, [2, B, 3, size, size]."""
        self._drawn = self.step, self._view_generator.get_state()
        return self._two_views(
            batch.images, generator=self._view_generator, sample_index=batch.indices
        )

    def undo_views(self) -> None:
        """Go back to before the views of the next step, if they have been drawn."""
        step, state = self._drawn
        if step == self.step:
            self._view_generator.set_state(state)

    def update(
        self, views: Tensor, labels: Tensor, locations: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Take one step.

        Args:
            views: what ``views`` returned for this process's part of the batch.
            labels: int64 [B], -1 where unknown; not read without probes.
            locations: 5x5 locations of the 5->5 sources, as in ``AMDIM``; None draws those of the
                whole batch, of which these images take their part.

        Returns:
            The values of ``names``, float32, on the device; does not wait for it.
        """
        if self.ranks.world_size > 1:  # dropout must differ
            seed_step(self.seed, self.step, self.ranks.rank)
        first, second = locations or [self._draw_locations(view) for view in views]
        self._set_rate()
        learn = self._learn if self._graph is None else self._graph
        values = learn(views, labels, first, second)
        self.step += 1
        return values

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.recipe.learning_rate * self.recipe.rate_factor(step, self.steps_per_epoch)

    def _set_rate(self) -> None:
        rate = self.rate(self.step)
        for options in self.optimizer.param_groups:
            if self._graph is None:
                options["lr"] = rate
            elif isinstance(options["lr"], Tensor) and options["lr"].device == self.device:
                options["lr"].fill_(rate)
            else:  # a checkpoint's is on the CPU
                options["lr"] = torch.tensor(rate, device=self.device)

    def _learn(self, views: Tensor, labels: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """What the device does in a step: all but drawing and the rate."""
        loss, values, encoding = self._forward(views, labels, (first, second))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if encoding is not None:
            del loss  # its graph holds the features
            encoding.backward()
        self.ranks.average_gradients(self._small)
        if self.recipe.clip_grad_norm:
            torch.nn.utils.clip_grad_norm_(self._parameters, self.recipe.clip_grad_norm)
        self.optimizer.step()
        return values

    def _forward(
        self, views: Tensor, labels: Tensor, locations: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, CachedEncoding | None]:
        """The loss with its graph, the values of ``names``, and what is left to propagate back."""
        ranks, encoding = self.ranks, None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16):
            if self.recipe.micro_batch:
                with ErrorsOnAllRanks(self.model.g2l_loss.group_name):
                    encoding = CachedEncoding(
                        self._encoder, views.unbind(0), self.recipe.micro_batch
                    )
                first, second = encoding.features
            else:
                first, second = encode_views(self._encoder, views)
            output = self.model.objective(first, second, locations=locations)
        values = [getattr(output, term) for term in LOSS_TERMS]
        loss = output.loss
        if output.entropy is not None and output.usage is not None:
            usage = ranks.sum(output.usage) / ranks.world_size
            values += [output.entropy, torch.special.entr(usage).sum()]
        if self.model.evaluator is not None:
            labels = labels.repeat(2)
            logits = torch.stack(self.model.evaluator(torch.cat([output.r1_x1, output.r1_x2])))
            labeled = (labels >= 0).sum()
            count = ranks.sum(labeled.clone()).clamp(min=1) / ranks.world_size
            losses = probe_loss(logits, labels, count)
            loss = loss + losses.sum()
            correct = (logits.argmax(-1) == labels).sum(-1)
            values += [*losses.unbind(), *correct.unbind(), labeled]
        return loss, torch.stack([value.detach().float() for value in values]), encoding

    def _draw_locations(self, view: Tensor) -> Tensor:
        """This process's part of the locations that the loss would draw for the whole batch."""
        return draw_locations(
            view.new_empty(len(view), LOCATIONS, 0),
            self._location_generator,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
        )

    def describe(self) -> dict[str, str]:
        """What runs a step: device, precision, backends of its parts, and how it is executed."""
        dtype = torch.bfloat16 if self._bfloat16 else torch.float32
        on_gpu = self.device.type == "cuda"
        return {
            "device": describe_device(self.device) if on_gpu else str(self.device),
            "precision": str(dtype).removeprefix("torch."),
            "loss": resolve_backend("auto", dtype, self.device),
            "views": self._two_views.backend,
            "encoder": self.model.encoder.backend_for(dtype, self.device),
            "execution": self._execution(),
        }

    def _execution(self) -> str:
        way = "compiled encoder" if self.recipe.compile else "eager"
        return way if self._graph is None else f"CUDA graph, {way}"

    def weights_are_finite(self) -> bool:
        """Whether no weight and no buffer of the model is NaN or infinite; waits for the device."""
        floating = [v for v in self.model.state_dict().values() if v.is_floating_point()]
        return bool(torch.stack([value.isfinite().all() for value in floating]).all())

    def state(self) -> dict[str, Any]:
        """Optimizer, generators and step, as tensors and plain values."""
        return {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "generators": {
                "views": self._view_generator.get_state(),
                "locations": self._location_generator.get_state(),
            },
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to what ``state`` returned; the model's weights are loaded by the caller."""
        self.step = state["step"]
        self.optimizer.load_state_dict(state["optimizer"])
        for options in self.optimizer.param_groups:  # a checkpoint's may be another
            options["capturable"] = self.optimizer.defaults["capturable"]
        if self._graph is not None:  # a recording would go on with the state of before
            self._graph = StepGraph(self._learn, self.device)
        self._view_generator.set_state(state["generators"]["views"])
        self._location_generator.set_state(state["generators"]["locations"])

"""The methods that score frozen features, their options, and checks before work starts."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from amdim_fast.checks import LARGEST_SEED, whole_number
from amdim_fast.data.image_sets import ImageSet
from amdim_fast.data.workers import worker_count
from amdim_fast.evaluation.features import adapt_batch_norm, adapting_batches, extract_features
from amdim_fast.evaluation.logistic import logistic_regression
from amdim_fast.evaluation.neighbours import nearest, vote
from amdim_fast.evaluation.probe_training import SCHEDULES, ProbeSchedule, train_probes
from amdim_fast.model.amdim import AMDIM
from amdim_fast.model.pretrained import Pretrained
from amdim_fast.model.probes import Probes

METHODS = ("probes", "knn", "logistic", "stored")
LOGISTIC_IMAGES = 20_000


@dataclass(frozen=True)
class EvaluationOptions:
    """The methods of ``evaluate`` and their settings.

    Attributes:
        methods: names in ``METHODS``; "probes" trains the linear and the MLP probe, "stored" scores
            the model's own. None is probes, knn and, up to 20,000 training images, logistic.
        schedule: the probes' training; None is the data set's own.
        k: neighbours that vote.
        temperature: temperature of their votes, in units of cosine similarity.
        transductive_bn: score as the public code does, which first moves BatchNorm's running
            statistics toward those of the test images; this inflates accuracy.
        batch_size: images encoded at a time.
        workers: processes that decode files; None uses every CPU.
        feature_memory: bytes that features may take.
        seed: seed of the probes and of the order of ``transductive_bn``.
    """

    methods: tuple[str, ...] | None = None
    schedule: ProbeSchedule | None = None
    k: int = 20
    temperature: float = 0.07
    transductive_bn: bool = False
    batch_size: int = 250
    workers: int | None = None
    feature_memory: int = 16 << 30
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.methods or ():
            if name not in METHODS:
                raise ValueError(f"method is {name!r}; it must be one of {', '.join(METHODS)}")
        if self.methods == ():
            raise ValueError(f"methods is empty; give one or more of {', '.join(METHODS)}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be 1 or more")
        whole_number("seed", self.seed, least=0, most=LARGEST_SEED)
        worker_count(self.workers)
        if not self.feature_memory >= 0:
            raise ValueError(f"feature_memory is {self.feature_memory}; it must be 0 or more bytes")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")

    def for_data(self, data: str, images: int) -> EvaluationOptions:
        """The options, with defaults that depend on the data set filled in."""
        methods = self.methods or ("probes", "knn", "logistic")[: 3 - (images > LOGISTIC_IMAGES)]
        schedule = self.schedule or SCHEDULES.get(data, ProbeSchedule())
        return replace(self, methods=methods, schedule=schedule)


def check_task(
    model: AMDIM, train: ImageSet, test: ImageSet, n_classes: int, options: EvaluationOptions
) -> None:
    """Check, before work starts, that model and data allow what the options request.

    Raises:
        ValueError: they do not; says why and what to change.
    """
    for split, images in (("training", train), ("test", test)):
        known = (images.labels >= 0) & (images.labels < n_classes)
        if not known.all():
            first = int((~known).nonzero()[0])
            raise ValueError(
                f"{split} image {images.name(first)} has the label {int(images.labels[first])};"
                f" all labels must be 0 to {n_classes - 1}"
            )
    if model.encoder.in_channels != train.channels:
        raise ValueError(
            f"the encoder takes images of C = {model.encoder.in_channels} channels; those of the"
            f" data set have {train.channels}"
        )
    methods = options.methods or ()
    if "stored" in methods:
        if model.evaluator is None:
            raise ValueError("the model has no probes of its own; leave out the method 'stored'")
        if model.evaluator.n_classes != n_classes:
            raise ValueError(
                f"the model's own probes know {model.evaluator.n_classes} classes and the data set"
                f" has {n_classes}; leave out the method 'stored'"
            )
    if "knn" in methods and not 1 <= options.k <= len(train):
        raise ValueError(
            f"k is {options.k}; it must be from 1 to {len(train)}, the number of training images:"
            " give --knn-k, or leave out the method 'knn'"
        )
    if options.transductive_bn:
        adapting_batches(len(test))
    width, total = model.encoder.n_rkhs, len(train) + len(test)
    needed = 4 * width * total
    if needed > options.feature_memory:
        raise ValueError(
            f"the features of {total:,} images, {width:,} float32 values each, take"
            f" {needed / 2**30:,.3g} GiB, more than feature_memory,"
            f" {options.feature_memory / 2**30:,.3g} GiB; allow more, or use fewer images"
        )


def score_methods(
    pretrained: Pretrained,
    train: ImageSet,
    test: ImageSet,
    n_classes: int,
    options: EvaluationOptions,
    *,
    progress: bool = False,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Scores [M, n_classes] of the test images by each method, on the CPU, and both sets' features.

    The model is not changed: ``transductive_bn`` adapts copies of it and of its probes.

    Args:
        pretrained: model and preprocessing.
        train: N labeled images.
        test: M labeled images.
        n_classes: number of classes.
        options: as completed by ``for_data``.
        progress: whether to show bars.
    """
    model, preprocessing, _ = pretrained
    device = next(model.parameters()).device
    methods = options.methods or ()
    extract = partial(
        extract_features,
        preprocessing=preprocessing,
        batch_size=options.batch_size,
        workers=options.workers,
        progress=progress,
    )
    features = extract(model.encoder, train)
    probes: dict[str, Probes] = {}
    if "probes" in methods:
        schedule = options.schedule or ProbeSchedule()
        probes[""] = train_probes(
            features,
            train.labels,
            n_classes,
            schedule,
            seed=options.seed,
            device=device,
            progress=progress,
        )
    if "stored" in methods and model.evaluator is not None:
        probes["stored_"] = copy.deepcopy(model.evaluator)

    encoder = model.encoder
    if options.transductive_bn:
        encoder = copy.deepcopy(encoder)
        for probe in probes.values():
            probe.train()
        adapt_batch_norm(
            encoder,
            test,
            preprocessing,
            also=lambda r1: [probe(r1) for probe in probes.values()],
            seed=options.seed,
            workers=options.workers,
        )
    judged = extract(encoder, test)

    scores: dict[str, Tensor] = {}
    for prefix, probe in probes.items():
        mlp, linear = _logits(probe.eval(), judged, device)
        scores |= {f"{prefix}linear": linear, f"{prefix}mlp": mlp}
    if "knn" in methods:
        neighbours = nearest(features.to(device), judged.to(device), options.k)
        labels = train.labels.to(device)
        scores["knn"] = vote(neighbours, labels, n_classes, options.temperature).cpu()
    if "logistic" in methods:
        scores["logistic"] = logistic_regression(features, train.labels, judged, n_classes)
    return scores, features, judged


@torch.no_grad()
def _logits(probes: Probes, features: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    parts = [probes(part.to(device)) for part in features.split(10_000)]
    mlp, linear = (torch.cat(table).float().cpu() for table in zip(*parts, strict=True))
    return mlp, linear

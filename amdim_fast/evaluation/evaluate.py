"""``evaluate``: a frozen encoder on a whole test set."""

from __future__ import annotations

import copy
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from amdim_fast.checkpoints.stored_model import preprocessing_of
from amdim_fast.data.classes import with_labels_of
from amdim_fast.data.datasets import ImageData, describe_data, load_data
from amdim_fast.devices import execution_line, find_device
from amdim_fast.evaluation.figures import DRAWING, draw_confusion, neighbour_sheet
from amdim_fast.evaluation.metrics import confusion_counts, top_k_accuracy
from amdim_fast.evaluation.scoring import EvaluationOptions, check_task, score_methods
from amdim_fast.files import check_new_folder, folder_written_whole, written_whole
from amdim_fast.model.amdim import AMDIM
from amdim_fast.model.frozen import frozen_facts
from amdim_fast.model.pretrained import Pretrained, read_pretrained
from amdim_fast.optional import may_fail, require
from amdim_fast.version import __version__
from amdim_fast.views.sheets import write_png

COMPLETE = "evaluation.json beside it is complete"


def evaluate(
    model: AMDIM | str | os.PathLike[str],
    data: ImageData | str = "digits",
    *,
    data_dir: str | os.PathLike[str] = "data",
    download: bool = False,
    skip_bad: bool = False,
    max_pixels: int | None = None,
    policy: str | None = None,
    options: EvaluationOptions | None = None,
    out_dir: str | os.PathLike[str] | None = None,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate the frozen encoder of a model on a labeled data set; every test image counts.

    Features come from one test-time view of each image, computed once by the encoder in evaluation
    mode. The model, or its file, is not changed.

    Args:
        model: an AMDIM, or a file or folder that ``AMDIM.from_pretrained`` reads.
        data: an ImageData, or a name that ``load_data`` reads with the next four arguments.
        data_dir: folder of the data set.
        download: whether to fetch what is missing there.
        skip_bad: whether to leave out image files that cannot be decoded.
        max_pixels: the most that an image file may have; None is Pillow's own bound.
        policy: name in ``POLICIES`` of the test-time transform; by default the model's own.
        options: the methods and their settings.
        out_dir: folder to create for ``evaluation.json``, ``confusion.png`` of the first method and
            ``neighbours.png``, which shows test images beside their nearest training images, framed
            in green where the class is right; None writes nothing. A picture that fails is said on
            stderr and left out.
        device: where the encoder and the probes run; by default where the model is or, for a file,
            cuda where torch finds a GPU, else cpu.
        progress: whether to say first what runs where, and to show bars.

    Returns:
        The contents of ``evaluation.json``. "accuracy" has top1 and top5, from 0 to 1, for each of
        linear, mlp, knn, logistic, stored_linear and stored_mlp that was asked for; top5 is 1 for
        five classes or fewer.

    Raises:
        ValueError: no labels, no test images, too many features, or an argument is out of range.
        FileExistsError: out_dir exists. FloatingPointError: the encoder's features are not finite.
        Also what ``load_data`` and ``AMDIM.from_pretrained`` raise.

    Deterministic for a seed, device, library versions and number of threads.
    """
    options = options or EvaluationOptions()
    if out_dir is not None:
        check_new_folder(Path(out_dir))
        require("matplotlib", DRAWING, "demo")
    loaded, source = load_model(model, policy, device)
    name = data if isinstance(data, str) else "own"
    if isinstance(data, str):
        data = load_data(
            data,
            data_dir,
            download=download,
            skip_bad=skip_bad,
            max_pixels=max_pixels,
            channels=loaded.model.encoder.in_channels,
            workers=options.workers,
            progress=progress,
        )
    train, test = data.labeled()
    classes = len(data.classes)
    options = options.for_data(name, len(train))
    check_task(loaded.model, train, test, classes, options)
    probes = loaded.model.evaluator
    if "stored" in (options.methods or ()) and probes is not None and probes.class_names:
        advice = "call the class folders what they were, or leave out the method 'stored'"
        data = with_labels_of(data, probes.class_names, "the model's own probes", advice)
        train, test = data.labeled()
    if progress:
        print(execution_line(frozen_facts(loaded.model.encoder)), file=sys.stderr)
        print(describe_data(data), file=sys.stderr)

    started = time.perf_counter()
    scores, features, judged = score_methods(
        loaded, train, test, classes, options, progress=progress
    )
    result: dict[str, Any] = {
        "source": source,
        "provenance": loaded.provenance,
        "data": name,
        "classes": classes,
        "train_images": len(train),
        "test_images": len(test),
        "skipped": list(data.skipped),
        "features": loaded.model.encoder.n_rkhs,
        "transductive_bn": options.transductive_bn,
        "accuracy": {
            method: {f"top{k}": top_k_accuracy(table, test.labels, k) for k in (1, 5)}
            for method, table in scores.items()
        },
        "options": asdict(options),
        "preprocessing": asdict(loaded.preprocessing),
        "device": str(next(loaded.model.parameters()).device),
        "versions": {
            "amdim_fast": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        "seconds": time.perf_counter() - started,
        "folder": None if out_dir is None else str(out_dir),
    }
    if out_dir is not None:
        with folder_written_whole(Path(out_dir)) as folder:
            text = json.dumps(result, indent=2) + "\n"
            (folder / "evaluation.json").write_text(text, encoding="utf-8")
        method, table = next(iter(scores.items()))
        confusion, neighbours = (Path(out_dir) / f"{of}.png" for of in ("confusion", "neighbours"))
        with may_fail(confusion, COMPLETE), written_whole(confusion) as file:
            counts = confusion_counts(table.argmax(1), test.labels, classes)
            figure = draw_confusion(counts, data.classes, f"{method}, {name}")
            file.write(figure)
        with may_fail(neighbours, COMPLETE):
            write_png(
                neighbours, neighbour_sheet(train, test, features, judged, loaded.preprocessing)
            )
    return result


def load_model(
    model: AMDIM | str | os.PathLike[str], policy: str | None, device: str | None
) -> tuple[Pretrained, str | None]:
    """The model with its preprocessing, on the device, and the file that it comes from, if any.

    Arguments and errors are ``evaluate``'s.
    """
    if not isinstance(model, AMDIM):
        return read_pretrained(model, find_device(device), policy=policy), str(model)
    where = None if device is None else find_device(device)
    preprocessing = model.preprocessing
    if policy is not None:
        preprocessing = preprocessing_of(policy, model.encoder.size, model.encoder.in_channels)
    if preprocessing is None:
        raise ValueError("the model has no preprocessing; give policy, or set model.preprocessing")
    if where is not None and next(model.parameters()).device != where:
        model = copy.deepcopy(model).to(where)
    return Pretrained(model, preprocessing, {"recipe": None, "step": None}), None

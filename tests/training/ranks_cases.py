"""Cases of a run on several processes; run as a script, one rank of a gloo group."""

import contextlib
import json
import os
import signal
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from amdim_fast import pretrain
from amdim_fast.data.datasets import LOADERS, ImageData
from amdim_fast.data.image_sets import TensorImages
from amdim_fast.distributed.ranks import Ranks
from amdim_fast.model import probes, sync_batchnorm
from amdim_fast.model.sync_batchnorm import synchronize_batchnorm
from amdim_fast.training import checkpoints as run_checkpoints
from amdim_fast.training import run as training_run
from amdim_fast.training import step as training_step
from amdim_fast.training.step import Training
from tests.processes import gloo_rank
from tests.training.tiny import SIXTY_STEPS, few_digits

STEPS = 10
WHOLE = replace(
    SIXTY_STEPS,
    steps=STEPS,
    log_every=1,
    mixture=2,
    use_bn=True,
    clip_grad_norm=0.5,
    sync_bn=True,
    precision="float32",
)
QUIET = {"progress": False, "device": "cpu"}


@cache
def partly_labeled(*_):
    """Labels of about a third, most of them in the first places of a class."""
    data = few_digits()
    labels = torch.where(data.train.labels < 3, data.train.labels, -1)
    train = TensorImages(data.train.images, labels)
    return ImageData(train, data.train, data.test, data.classes)


@contextlib.contextmanager
def replaced(owner, name, value):
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield before
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def float64():
    """Encoder, losses and their gradients in double; the probes' loss stays in float32."""
    build, views = training_run.build_model, Training.views
    with (
        replaced(training_run, "build_model", lambda *given: build(*given).double()),
        replaced(Training, "views", lambda *given: views(*given).double()),
    ):
        yield


def observed(recipe, folder, **options):
    """Summary, first gradients and last weights of a run without dropout, whose masks differ."""
    grads, kept = {}, []
    begin = Training.__init__

    def watched(self, *arguments):
        begin(self, *arguments)
        kept.append(self)
        names = dict(self.model.named_parameters())

        def keep(*_):
            if not grads:
                grads.update({k: p.grad.clone() for k, p in names.items() if p.requires_grad})

        self.optimizer.register_step_pre_hook(keep)

    with replaced(probes.Probes, "dropout", 0.0), replaced(Training, "__init__", watched):
        summary = pretrain(recipe, name=folder.name, runs_dir=folder.parent, **QUIET, **options)
    return summary, grads, {k: v.detach().clone() for k, v in kept[0].model.state_dict().items()}


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def compared(folder):
    """A step in float32, and all of them in float64, in which rounding does not grow."""
    found = {"step": observed(replace(WHOLE, steps=1), folder / "step")}
    with float64():
        found["whole"] = observed(WHOLE, folder / "whole")
        # Frozen statistics, with which micro-batches are exact; one process takes the whole batch.
        micro = 3 if dist.is_initialized() else 0
        cached = replace(WHOLE, steps=3, freeze_bn=True, micro_batch=micro)
        found["cached"] = observed(cached, folder / "cached")
    return found


def sentence_of(function):
    try:
        function()
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def own_negatives(rank):
    build = training_run.build_model
    return replaced(training_run, "build_model", lambda recipe, classes, _: build(recipe, classes))


def first_locations(rank):
    draw = training_step.draw_locations

    def wrong(*given, rank, world_size):
        return draw(*given, rank=0, world_size=world_size)

    return replaced(training_step, "draw_locations", wrong)


def own_gradients(rank):
    return replaced(Ranks, "average_gradients", lambda *_: None)


def own_count(rank):
    loss = training_step.probe_loss
    return replaced(training_step, "probe_loss", lambda logits, labels, _: loss(logits, labels))


def own_views(rank):
    views = Training.views

    def wrong(self, batch):
        torch.rand(rank, generator=self._view_generator)
        return views(self, batch)

    return replaced(Training, "views", wrong)


def own_statistics(rank):
    return replaced(sync_batchnorm, "synchronize_batchnorm", lambda *_: None)


PLANTED = (
    own_negatives,
    first_locations,
    own_gradients,
    own_count,
    own_views,
    own_statistics,
)


def planted(rank, folder):
    """Records of two steps with an error each."""
    found = {}
    for plant in PLANTED:
        with plant(rank):
            observed(replace(WHOLE, steps=2), folder / plant.__name__)
        found[plant.__name__] = records(folder / plant.__name__)
    return found


def failing(step, rank, action):
    """``Training.update`` that does something else on one rank in one step."""
    update = Training.update

    def changed(self, *arguments):
        values = update(self, *arguments)
        return action(values) if self.step == step and self.ranks.rank == rank else values

    return replaced(Training, "update", changed)


def bad_views(rank):
    views = Training.views

    def wrong(self, batch):
        if self.step == 2 and self.ranks.rank == 1:
            raise OSError("images/7.jpg cannot be read")
        return views(self, batch)

    return replaced(Training, "views", wrong)


@contextlib.contextmanager
def fewer_images(rank):
    data = partly_labeled()
    LOADERS["digits"] = lambda *_: replace(data, train=data.test) if rank else data
    try:
        yield
    finally:
        LOADERS["digits"] = partly_labeled


def full_disk(rank):
    save = run_checkpoints.save_checkpoint

    def on_a_full_disk(path, model, **extra):
        if extra["step"] > 5:
            raise OSError(28, "No space left on device")
        return save(path, model, **extra)

    return replaced(run_checkpoints, "save_checkpoint", on_a_full_disk)


def errors(rank, folder):
    """What each rank raises where one errs."""
    contexts = {
        "nan": failing(3, 1, lambda values: values * float("nan")),
        "views": bad_views(rank),
        "data": fewer_images(rank),
        "disk": full_disk(rank),
        "exists": contextlib.nullcontext(),
    }
    (folder / "exists").mkdir(exist_ok=True)
    found = {}
    for name, context in contexts.items():
        dist.barrier()
        with context:
            found[name] = sentence_of(
                lambda name=name: pretrain(WHOLE, name=name, runs_dir=folder, **QUIET)
            )
    found["batch"] = sentence_of(
        lambda: pretrain(replace(WHOLE, batch_size=15), name="batch", runs_dir=folder, **QUIET)
    )
    return found


def stopped(rank, folder):
    """A signal to the last rank stops all after the same step; they go on to the same end."""

    def stop(values):
        os.kill(os.getpid(), signal.SIGTERM)
        return values

    with failing(4, dist.get_world_size() - 1, stop):
        first = pretrain(WHOLE, name="stopped", runs_dir=folder, **QUIET)
    return first, pretrain(resume=folder / "stopped", **QUIET)


def batchnorm(rank, world):
    """This rank's part of a synchronised BatchNorm, and all of one on one process."""
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": torch.float64}
    x, upstream = (torch.randn(6 * world, 5, 3, 3, **options) * 3 + 1 for _ in range(2))
    plain = nn.Sequential(nn.BatchNorm2d(5)).double()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.copy_(torch.randn(5, **options))
    ours = nn.Sequential(nn.BatchNorm2d(5)).double()
    ours.load_state_dict(plain.state_dict())
    synchronize_batchnorm(ours, dist.group.WORLD.group_name)
    found = []
    for module, part in ((plain, slice(None)), (ours, slice(6 * rank, 6 * rank + 6))):
        inputs = x[part].clone().requires_grad_()
        out = module(inputs)
        grads = torch.autograd.grad((out * upstream[part]).sum(), [inputs, *module.parameters()])
        found.append([out.detach(), grads[0], grads[1:]])
        found[-1].append({k: v.clone() for k, v in module.state_dict().items()})
    compiled = torch.compile(ours, backend="aot_eager")
    inputs = x[6 * rank : 6 * rank + 6].clone().requires_grad_()
    out = compiled(inputs)
    found.append(
        [
            out.detach(),
            *torch.autograd.grad((out * upstream[6 * rank : 6 * rank + 6]).sum(), inputs),
        ]
    )
    return found


def run(rank, world, folder):
    found = compared(folder)
    if world == 2:
        for name in ("once", "twice"):
            pretrain(replace(WHOLE, sync_bn=False), name=name, runs_dir=folder, **QUIET)
        found["planted"] = planted(rank, folder)
        found["errors"] = errors(rank, folder)
        found["stopped"] = stopped(rank, folder)
        found["batchnorm"] = batchnorm(rank, world)
    torch.save(found, folder / f"{rank}.pt")


def hang(folder):
    """The second of two ranks stands still in its third step."""
    with failing(3, 1, lambda _: os.kill(os.getpid(), signal.SIGSTOP)):
        return pretrain(WHOLE, name="run", runs_dir=folder, timeout=6, **QUIET)


if __name__ == "__main__":
    LOADERS["digits"] = partly_labeled
    if sys.argv[4:] == ["hang"]:
        torch.set_num_threads(1)
        os.environ["RANK"], os.environ["WORLD_SIZE"] = sys.argv[1:3]
        hang(Path(sys.argv[3]))
    else:
        with gloo_rank(seconds=100) as place:
            run(*place)

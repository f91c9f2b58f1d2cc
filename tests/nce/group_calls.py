"""Calls over several ranks that are not about numbers alone: errors, torch.compile, opcheck."""

import torch

from amdim_fast import AMDIM, LossMultiNCE, nce_log_prob, nce_loss
from amdim_fast.nce.op_inputs import Inputs
from tests.nce.group_inputs import LOCATIONS, WIDTH, draw, log_prob_inputs, maps, own


def sentence_of(function):
    try:
        function()
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def bad_input(rank, world, group):
    """What each rank raises where the last one errs, and that a good call works afterwards."""
    bad = rank == world - 1
    src, trg = draw(3, WIDTH), draw(3, LOCATIONS, WIDTH)
    features, locations = maps()
    own_features = [own(item, rank, world) for item in features]
    places = tuple(own(item, rank, world) for item in locations)
    outside = (places[0] + 100, places[1])
    short = (places[0][:-1], places[1])
    loss, model = LossMultiNCE(group=group), AMDIM(32, 8, 16, 1, group=group)
    images = torch.zeros(2, 3, 32, 32)

    def call(**changes):
        given = {"src": src, "trg": trg, "group": group} | (changes if bad else {})
        return nce_loss(given.pop("src"), given.pop("trg"), **given)

    calls = {
        "dtype": lambda: call(src=src.long()),
        "width": lambda: call(src=src[:, :-1]),
        "clip": lambda: call(clip=-1.0),
        "more targets": lambda: call(trg=draw(4, LOCATIONS, WIDTH)),
        "fewer targets": lambda: call(trg=trg[:2]),
        "scale": lambda: call(scale=0.0),
        "positive": lambda: call(positive=torch.tensor([1, 0, 1])),
        "batch": lambda: call(src=src[:2], trg=trg[:2]),
        "locations of a map": lambda: call(trg=trg[:, :-1]),
        "another clip": lambda: call(clip=7.0),
        "needs": lambda: call(src=src.clone().requires_grad_()),
        "places short": lambda: loss(*own_features, locations=short if bad else places),
        "places outside": lambda: loss(*own_features, locations=outside if bad else places),
        "views": lambda: model(images, images[:1] if bad else images),
    }
    found = {name: sentence_of(function) for name, function in calls.items()}
    found["good"] = sentence_of(call) or sentence_of(lambda: loss(*own_features, locations=places))
    return found


def compiled(rank, world, group):
    """Eager results, those of the whole graph, and those of a graph of any sizes."""
    src, trg, upstream, of_mean_sq = log_prob_inputs(torch.float32)
    src, upstream = own(src, rank, world, 1).requires_grad_(), own(upstream, rank, world, 1)
    trg = own(trg, rank, world).requires_grad_()
    loss = LossMultiNCE(group=group)
    features = [own(item, rank, world).requires_grad_() for item in maps()[0]]
    places = tuple(own(item, rank, world) for item in maps()[1])

    def objective(src, trg, *features):
        out = nce_log_prob(src, trg, group=group)
        total = (out.log_prob * upstream).sum() + (out.mean_sq * of_mean_sq).sum()
        return total + sum(loss(*features, locations=places))

    inputs = (src, trg, *features)
    whole = torch.compile(objective, fullgraph=True, backend="aot_eager")
    values = [function(*inputs) for function in (objective, whole)]
    torch.compiler.reset()
    any_size = torch.compile(objective, fullgraph=True, backend="aot_eager", dynamic=True)
    values.append(any_size(*inputs))
    return [[value.detach(), *torch.autograd.grad(value, inputs)] for value in values]


def opcheck(group):
    """The registrations of the ops agree with what they do over a group."""
    src, trg = draw(2, 4, 8), draw(4, 3, 8)
    for budget in (0, 2**20):
        inputs = Inputs(
            srcs=[src],
            trgs=[trg],
            picks=[torch.tensor([0, 1, 2, 0])],
            src_of=[0],
            pick_from=[0],
            clip=20.0,
            same_location=False,
            parts=3,
            loss_weight=0.5,
            mean_sq_weight=0.1,
            backend="torch",
            precision="auto",
            memory_budget=budget,
        )
        options = group.group_name, [True, True]
        *results, score, saved = torch.ops.amdim_fast.nce_forward(*inputs, *options)
        upstream = [torch.randn_like(result) for result in results]
        torch.library.opcheck(
            torch.ops.amdim_fast.nce_backward.default,
            (*inputs, *options, [score, *saved], *upstream),
        )
        for tensor in (src, trg):
            tensor.requires_grad_()
        torch.library.opcheck(torch.ops.amdim_fast.nce_forward.default, (*inputs, *options))
        for tensor in (src, trg):
            tensor.requires_grad_(False)
    return True


def objective(rank, world, group):
    """Of the objective and of the sum of forward's losses: parts, value and gradients."""
    features, locations = maps()
    places = tuple(own(item, rank, world) for item in locations)
    loss, found = LossMultiNCE(20.0, 0.3, group), []
    for alone in (True, False):
        inputs = [own(item, rank, world).requires_grad_() for item in features]
        if alone:
            total, *parts = loss.objective(*inputs, locations=places)
        else:
            parts = loss(*inputs, locations=places)
            total = sum(parts)
        grads = torch.autograd.grad(2.5 * total, inputs)
        found.append([*(part.detach() for part in (total, *parts)), *grads])
        found[-1].append(torch.tensor([part.requires_grad for part in parts]))
    return found

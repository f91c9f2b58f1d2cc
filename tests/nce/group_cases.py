"""Cases of the contrastive op over several ranks; run as a script, one rank of a gloo group."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from amdim_fast import (
    AMDIM,
    FeatureMapContrastiveTask,
    LossMultiNCE,
    MixtureNCELoss,
    nce_log_prob,
    nce_loss,
)
from amdim_fast.nce import ranks as nce_ranks
from amdim_fast.nce.op_inputs import Inputs
from tests.nce.cases import lower_floors
from tests.processes import gloo_rank

IMAGES, WIDTH, LOCATIONS, SETS = 12, 24, 5, 2
STEPS = 10
LOG_PROB_CASES = [
    (dtype, clip, negatives, budget)
    for dtype in (torch.float32, torch.float64)
    for clip in (5.0, 20.0, 100.0, None)
    for negatives in ("other_images", "same_location")
    for budget in (0, None)
]


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def own(tensor, rank, world, dim=0):
    """The images of one rank."""
    return tensor.chunk(world, dim)[rank].detach().clone()


def log_prob_inputs(dtype):
    src = draw(SETS, IMAGES, WIDTH, dtype=dtype, seed=1) * 2
    trg = draw(IMAGES, LOCATIONS, WIDTH, dtype=dtype, seed=2)
    upstream = draw(SETS, IMAGES, LOCATIONS, dtype=dtype, seed=3)
    return src, trg, upstream, draw(SETS, dtype=dtype, seed=4)


def log_prob_case(rank, world, group, dtype, clip, negatives, budget):
    src, trg, upstream, of_mean_sq = log_prob_inputs(dtype)
    src, upstream = own(src, rank, world, 1).requires_grad_(), own(upstream, rank, world, 1)
    trg = own(trg, rank, world).requires_grad_()
    out = nce_log_prob(src, trg, clip=clip, negatives=negatives, memory_budget=budget, group=group)
    # The ranks' weights differ and add up to 1.
    share = (rank + 1) / sum(range(1, world + 1))
    objective = (out.log_prob * upstream).sum() + share * (out.mean_sq * of_mean_sq).sum()
    return [tensor.detach() for tensor in (*out, *torch.autograd.grad(objective, (src, trg)))]


def maps(dtype=torch.float32, components=None):
    """Features of both views as the losses take them, and locations."""
    lead = () if components is None else (components,)
    features = []
    for view in range(2):
        features += [
            2 * draw(*lead, IMAGES, WIDTH, dtype=dtype, seed=10 + view),
            draw(IMAGES, WIDTH, 2, 2, dtype=dtype, seed=20 + view),
            draw(IMAGES, WIDTH, 3, 3, dtype=dtype, seed=30 + view),
        ]
    generator = torch.Generator().manual_seed(5)
    locations = [torch.randint(0, 4, (IMAGES,), generator=generator) for _ in range(2)]
    return features, locations


def loss_case(name, rank, world, group, dtype=torch.float32):
    """Losses, and gradients of the mean of the ranks' objectives."""
    features, locations = maps(dtype, 3 if name == "mixture" else None)
    features = [
        own(item, rank, world, 1 if item.dim() == 3 else 0).requires_grad_() for item in features
    ]
    locations = tuple(own(item, rank, world) for item in locations)
    if name == "multi":
        losses = LossMultiNCE(20.0, 0.3, group)(*features, locations=locations)
    elif name == "mixture":
        loss = MixtureNCELoss(2.0, 0.3, 20.0, 0.3, group)
        losses = loss(*features, locations=locations)[:4]
    else:
        views = [[features[i][:, :, None, None], *features[i + 1 : i + 3]] for i in (0, 3)]
        task = FeatureMapContrastiveTask("01, 02", tclip=20.0, group=group)
        losses = [part for found in task(*views) for part in found.view(-1)]
    grads = torch.autograd.grad(sum(losses), features)
    return torch.stack(losses).detach(), [grad / world for grad in grads]


class Small(nn.Module):
    """Features without BatchNorm, whose statistics would be a rank's own."""

    def __init__(self, group):
        super().__init__()
        self.body = nn.Linear(16, 64)
        self.heads = nn.ModuleList(nn.Linear(64, WIDTH * n * n) for n in (1, 2, 3))
        self.loss = LossMultiNCE(20.0, group=group)

    def forward(self, x1, x2, locations):
        features = []
        for x in (x1, x2):
            hidden = torch.tanh(self.body(x))
            features += [
                head(hidden).view(-1, WIDTH, n, n)
                for n, head in zip((1, 2, 3), self.heads, strict=True)
            ]
        return sum(self.loss(*features, locations=locations))


def train(rank, world, group, dtype):
    """Losses of ten steps, the first gradients and the last parameters."""
    torch.manual_seed(0)
    model = Small(group).to(dtype)
    ddp = model if group is None else nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    losses, first = [], None
    for _ in range(STEPS):
        x1, x2 = (
            own(draw(IMAGES, 16, dtype=dtype, seed=100 + view), rank, world) for view in range(2)
        )
        locations = tuple(own(item, rank, world) for item in maps()[1])
        optimizer.zero_grad()
        loss = ddp(x1, x2, locations)
        loss.backward()
        first = first or [parameter.grad.clone() for parameter in model.parameters()]
        losses.append(loss.detach())
        optimizer.step()
    return torch.stack(losses), first, [parameter.detach() for parameter in model.parameters()]


def saved_bytes(world, group, images):
    """Bytes that the forward saves for the backward, each storage once."""
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    src = draw(images, WIDTH).requires_grad_()
    trg = draw(images, 49, WIDTH).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        nce_loss(src, trg, memory_budget=0, group=group)
    return sum(seen.values())


def traffic(rank, world, group, width=128, images=2):
    """Bytes that a rank receives from others in one step of LossMultiNCE."""
    received = []

    def counting(start):
        def counted(tensor, group):
            pending = start(tensor, group)
            received.append(pending.received.nbytes * (world - 1) // world)
            return pending

        return counted

    names = "start_gather", "start_exchange"
    kept = [getattr(nce_ranks, name) for name in names]
    for name, start in zip(names, kept, strict=True):
        setattr(nce_ranks, name, counting(start))
    shapes = [(images, width, n, n) for n in (1, 5, 7)] * 2
    features = [draw(*shape, seed=rank).requires_grad_() for shape in shapes]
    sum(LossMultiNCE(group=group)(*features)).backward()
    for name, start in zip(names, kept, strict=True):
        setattr(nce_ranks, name, start)
    return sum(received)


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
    """Eager results and those of the whole graph."""
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
    return [[value.detach(), *torch.autograd.grad(value, inputs)] for value in values]


def average(patch):
    start = nce_ranks.start_exchange
    patch("start_exchange", lambda parts, group: start(parts / group.size(), group))


def local_count(patch):
    gather = nce_ranks._gather_upstream

    def wrong(inputs, layout, upstream, group):
        found = gather(inputs, layout, upstream, group)
        return found._replace(mean_sq=found.mean_sq * group.size())

    patch("_gather_upstream", wrong)


def wrong_order(patch):
    join = nce_ranks.join_rows
    patch("join_rows", lambda parts: join(parts.flip(0)))


def planted(rank, world, group):
    """The multi case with an error each."""
    found = {}
    for plant in (average, local_count, wrong_order):
        replaced = {}

        def patch(name, value, replaced=replaced):
            replaced[name] = getattr(nce_ranks, name)
            setattr(nce_ranks, name, value)

        plant(patch)
        found[plant.__name__] = loss_case("multi", rank, world, group)
        for name, value in replaced.items():
            setattr(nce_ranks, name, value)
    return found


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


def run(rank, world, folder):
    group = dist.group.WORLD
    place = rank, world, group
    with pytest.MonkeyPatch.context() as patch:
        lower_floors(patch)
        log_probs = [log_prob_case(*place, *case) for case in LOG_PROB_CASES]
    found = {
        "log_prob": log_probs,
        "half": log_prob_case(*place, torch.bfloat16, 20.0, "other_images", None),
        "train32": train(*place, torch.float32),
        "train64": train(*place, torch.float64),
        "bytes": [saved_bytes(world, group, images) for images in (12, 24, 36)],
    }
    for dtype in (torch.float32, torch.float64):
        for name in ("multi", "mixture", "task"):
            found[name, dtype] = loss_case(name, *place, dtype)
    found["again"] = loss_case("multi", *place)
    found["objective"] = objective(*place)
    found["bad"] = bad_input(*place)
    if world == 1:
        found["opcheck"] = opcheck(group)
    if world == 2:
        found["compiled"] = compiled(*place)
    if world > 1:
        found["planted"] = planted(*place)
        found["traffic"] = traffic(*place)
    torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    with gloo_rank(seconds=60) as place:
        run(*place)

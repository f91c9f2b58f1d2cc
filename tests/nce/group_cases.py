"""Cases of the contrastive op over several ranks; run as a script, one rank of a gloo group."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from amdim_fast import (
    FeatureMapContrastiveTask,
    LossMultiNCE,
    MixtureNCELoss,
    nce_log_prob,
    nce_loss,
)
from amdim_fast.nce import ranks as nce_ranks
from tests.nce.cases import lower_floors
from tests.nce.group_calls import bad_input, compiled, objective, opcheck
from tests.nce.group_inputs import (
    IMAGES,
    WIDTH,
    draw,
    hard_negatives,
    image_and_text,
    log_prob_inputs,
    maps,
    own,
)
from tests.processes import gloo_rank

STEPS = 10
LOG_PROB_CASES = [
    (dtype, clip, negatives, budget)
    for dtype in (torch.float32, torch.float64)
    for clip in (5.0, 20.0, 100.0, None)
    for negatives in ("other_images", "same_location")
    for budget in (0, None)
]


MORE_CASES = [
    (negatives, budget, flipped)
    for negatives in ("other_images", "same_location")
    for budget in (0, None)
    for flipped in (False, True)
]


def more_case(rank, world, group, negatives, budget, flipped):
    """As ``log_prob_case``, with hard negatives on every rank, in float64."""
    src, trg, upstream, of_mean_sq = log_prob_inputs(torch.float64)
    src, upstream = own(src, rank, world, 1).requires_grad_(), own(upstream, rank, world, 1)
    trg = torch.cat([own(part, rank, world) for part in (trg, hard_negatives())])
    trg = (trg.flip(0) if flipped else trg).requires_grad_()
    positive = torch.arange(len(trg)).flip(0)[: src.shape[1]] if flipped else None
    options = {"negatives": negatives, "memory_budget": budget, "positive": positive}
    out = nce_log_prob(src, trg, group=group, **options)
    objective = (out.log_prob * upstream).sum() + (out.mean_sq * of_mean_sq).sum() / world
    grads = torch.autograd.grad(objective, (src, trg))
    return [
        tensor.detach() for tensor in (*out, grads[0], grads[1].flip(0) if flipped else grads[1])
    ]


def log_prob_case(rank, world, group, dtype, clip, negatives, budget):
    src, trg, upstream, of_mean_sq = log_prob_inputs(dtype)
    src, upstream = own(src, rank, world, 1).requires_grad_(), own(upstream, rank, world, 1)
    trg = own(trg, rank, world).requires_grad_()
    out = nce_log_prob(src, trg, clip=clip, negatives=negatives, memory_budget=budget, group=group)
    # The ranks' weights differ and add up to 1.
    share = (rank + 1) / sum(range(1, world + 1))
    objective = (out.log_prob * upstream).sum() + share * (out.mean_sq * of_mean_sq).sum()
    return [tensor.detach() for tensor in (*out, *torch.autograd.grad(objective, (src, trg)))]


def clip_case(rank, world, group):
    """CLIP's loss with a learned scale, and gradients of the mean of the ranks' losses."""
    image, text = (own(item, rank, world).requires_grad_() for item in image_and_text())
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    options = {"scale": scale, "clip": None, "reduction": "sum", "group": group}
    loss = sum(nce_loss(*pair, **options)[0] for pair in ((image, text), (text, image)))
    grads = torch.autograd.grad(loss / IMAGES * world, (image, text, scale))
    return loss.detach(), *(grad / world for grad in grads)


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


def run(rank, world, folder):
    group = dist.group.WORLD
    place = rank, world, group
    with pytest.MonkeyPatch.context() as patch:
        lower_floors(patch)
        log_probs = [log_prob_case(*place, *case) for case in LOG_PROB_CASES]
        more = [more_case(*place, *case) for case in MORE_CASES]
    found = {
        "more": more,
        "log_prob": log_probs,
        "half": log_prob_case(*place, torch.bfloat16, 20.0, "other_images", None),
        "train32": train(*place, torch.float32),
        "train64": train(*place, torch.float64),
        "bytes": [saved_bytes(world, group, images) for images in (12, 24, 36)],
    }
    for dtype in (torch.float32, torch.float64):
        for name in ("multi", "mixture", "task"):
            found[name, dtype] = loss_case(name, *place, dtype)
    found["clip"] = clip_case(*place)
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

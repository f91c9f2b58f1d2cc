"""What the losses move and hold on a rank of a gloo group; run as a script, one rank."""

import json

import torch
import torch.distributed as dist

from amdim_fast import LossMultiNCE, nce_loss
from amdim_fast.distributed import collectives
from tests.processes import gloo_rank

# (width, images a rank, dtype) of each case.
CASES = ((128, 2, "float32"), (64, 6, "float32"), (256, 2, "bfloat16"))


class Counter:
    """Wraps both collectives of the op; bytes that this rank receives of others, and sends."""

    def __init__(self, world):
        self.world, self.received, self.sent = world, 0, 0
        self.gather, self.exchange = collectives._gather, dist.all_to_all_single

    def __enter__(self):
        def gather(received, part, **options):
            self.received += received.nbytes - part.nbytes
            self.sent += (self.world - 1) * part.nbytes
            return self.gather(received, part, **options)

        def exchange(received, parts, **options):
            self.received += received.nbytes - received.nbytes // self.world
            self.sent += parts.nbytes - parts.nbytes // self.world
            return self.exchange(received, parts, **options)

        collectives._gather, dist.all_to_all_single = gather, exchange
        return self

    def __exit__(self, *_):
        collectives._gather, dist.all_to_all_single = self.gather, self.exchange


def counted(world, inputs, objective):
    """Bytes received, sent and held by forward and backward, inputs and indices left out."""
    held, own = {}, {tensor.untyped_storage().data_ptr() for tensor in inputs}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.is_floating_point():
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with Counter(world) as counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = objective()
        loss.backward()
    return counter.received, counter.sent, sum(held.values())


def run(rank, world, folder):
    group, found = dist.group.WORLD, []
    torch.manual_seed(rank)
    for width, images, name in CASES:
        dtype = getattr(torch, name)

        def draw(*shape, dtype=dtype):
            return torch.randn(*shape).to(dtype).requires_grad_()

        maps = [
            draw(images, n, n, width).detach().movedim(-1, 1).requires_grad_() for n in (1, 5, 7)
        ] * 2
        maps = [item.detach().clone(memory_format=torch.channels_last) for item in maps]
        maps = [item.requires_grad_() for item in maps]
        loss = LossMultiNCE(group=group, memory_budget=0)
        six = counted(world, maps, lambda loss=loss, maps=maps: sum(loss(*maps)))
        src, trg = draw(images, width), draw(images, 49, width)
        one = counted(
            world,
            (src, trg),
            lambda src=src, trg=trg: sum(nce_loss(src, trg, memory_budget=0, group=group)),
        )
        found.append([six, one])
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    with gloo_rank(seconds=60) as place:
        run(*place)

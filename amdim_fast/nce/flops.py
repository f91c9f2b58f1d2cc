"""What ``torch.utils.flop_counter.FlopCounterMode`` counts for the contrastive ops.

2 R N L D for each product of R sources with N L targets of width D that is made: one in a forward,
one more for each gradient that is wanted, and one where the backward computes scores again. In
limbs a product counts once.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

from amdim_fast.distributed.agreement import resolve
from amdim_fast.nce.library import OPS
from amdim_fast.nce.op_inputs import Inputs, read
from amdim_fast.nce.plan import KEEP, ONE_PASS

COUNTER = "torch.utils.flop_counter"


def _forward(*arguments: Any, **_: Any) -> int:
    inputs, (group_name, needs, keep, _numbers) = read(arguments, 4)
    layout = inputs.layout(
        one_pass=False, needs=needs, world_size=_world_size(group_name), keep=keep
    )
    return _counted(layout.shapes, [1] * len(layout.shapes))


def _backward(*arguments: Any, **_: Any) -> int:
    inputs, (group_name, needs, *_others, keep, _numbers) = read(arguments, 9)
    layout = inputs.layout(
        one_pass=False, needs=needs, world_size=_world_size(group_name), keep=keep
    )
    again = [int(plan.mode != KEEP) for plan in layout.plan.pairings]
    return _counted(layout.shapes, again, _wanted(inputs, needs))


def _objective(*arguments: Any, **_: Any) -> int:
    inputs, (needs, _numbers) = read(arguments, 2)
    layout = inputs.layout(one_pass=True, needs=needs)
    wanted = _wanted(inputs, needs)
    made = [
        1 if plan.mode == ONE_PASS or not count else 2
        for plan, count in zip(layout.plan.pairings, wanted, strict=True)
    ]
    return _counted(layout.shapes, made, wanted)


def _world_size(group_name: str | None) -> int:
    return 1 if group_name is None else resolve(group_name).size()


def _wanted(inputs: Inputs, needs: Sequence[bool]) -> list[int]:
    """Gradients of each pairing that take a product."""
    wiring = inputs.wiring(needs)
    return [wiring.needs_src(index) + wiring.needs_trg(index) for index in wiring.pairings]


def _counted(shapes: Sequence[Any], *products: Sequence[int]) -> int:
    """Operations of the products of each pairing."""
    counts = map(sum, zip(*products, strict=True))
    return sum(
        2 * shape.rows * shape.columns * shape.width * count
        for shape, count in zip(shapes, counts, strict=True)
    )


def register() -> None:
    """Give torch's counter the formulas: now, or when it is imported, since it loads triton."""
    if COUNTER in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _WhenImported())


def _register() -> None:
    from torch.utils.flop_counter import register_flop_formula

    formulas = {"nce_forward": _forward, "nce_backward": _backward, "nce_objective": _objective}
    for name, formula in formulas.items():
        register_flop_formula(getattr(OPS, name), get_raw=True)(formula)


class _WhenImported(MetaPathFinder):
    """Registers once torch's counter has been loaded."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The counter's own, which registers after it has run."""
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: Any) -> None:
                run(module)
                _register()

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec

"""Tables of rows; goals are judged elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import NamedTuple

from amdim_fast.training.recipes import RECIPES
from amdim_fast.views.params import POLICIES
from benchmarks import sources, traffic
from benchmarks.bench_augment import ALL_CORES
from benchmarks.bench_losses import CASES as OTHER_LOSSES
from benchmarks.bench_losses import PROVIDERS as LOSS_PROVIDERS
from benchmarks.gpu import grid
from benchmarks.nce_providers import PEERS
from benchmarks.report.goals import (
    CPUS,
    GOALS,
    LARGE,
    OURS,
    PILLOW,
    REFERENCE_LOSS,
    SMALL,
    judge,
    quality_samples,
    spread,
)
from benchmarks.report.rows import (
    MISSING,
    NO_ROWS,
    STALE,
    Row,
    Rows,
    cell,
    conditions,
    mark,
    table,
)

METHODS = {
    "reference": "original algorithm",
    "reference_compiled": "the same, torch.compile",
    "torch_objective": "amdim_fast",
    "torch": "amdim_fast, any upstream gradient",
    "torch_least": "amdim_fast, least memory",
}
FLOORS = {
    "gemms": "matrix products alone, torch.mm",
    "gemms_onednn": "matrix products alone, oneDNN",
}
ON_GPU = {name.replace("torch", "triton"): label for name, label in METHODS.items()}
ON_GPU |= {
    grid.LIMBS: "amdim_fast, precision=limbs",
    "torch_objective": "amdim_fast, torch backend",
    "gemms": FLOORS["gemms"],
}
GPU_METHODS = {name: ON_GPU[name] for name in (*PEERS, grid.OURS, "triton_least")}


class Column(NamedTuple):
    """One column of the contrastive bench."""

    case: str
    mode: str
    metric: str


COLUMNS = {
    "forward + backward": Column(SMALL, "forward_backward", "time"),
    "forward, no_grad": Column(SMALL, "forward", "time"),
    "extra peak memory": Column(SMALL, "forward_backward", "extra_peak_memory"),
}
ON_CARD = {
    f"B = {images}, D = {width}{suffix}": grid.grid_key(images, width, dtype)
    for images, width, dtype, suffix in (
        *((*size, "bfloat16", "") for size in ((256, 1024), (1024, 2048), (4096, 2048))),
        (1024, 2048, "float32", ", float32"),
    )
}
GPU_METRICS = (
    *("time", "device_time", "host_time", "launches", "extra_peak_memory"),
    "gradient_error",
)
CPU_VIEWS = {"cpu-256px-imagenet128": "256² to 128²", "cpu-96px-stl10": "96² to 64²"}
GPU_VIEWS = {
    "cuda-256px-imagenet128": "256 of 256² to 128²",
    "cuda-96px-stl10": "256 of 96² to 64²",
    "cuda-32px-cifar": "256 of 32²",
}


def nce(rows: Rows, columns: Mapping[str, Column], methods: Mapping[str, str]) -> str:
    """Providers against columns, with factors against the original; products take no memory."""
    used, body = [], []
    for provider, label in methods.items():
        line = [label]
        for column in columns.values():
            row = rows.find("nce", provider=provider, **column._asdict())
            base = rows.find("nce", provider="reference", **column._asdict())
            weightless = provider in FLOORS and column.metric != "time"
            line.append("" if weightless else cell(row, base))
            used += [row] if row else []
        body.append(line)
    return table(["", *columns], body, used)


def _time_and_memory(rows: Rows, provider: str, case: str) -> list[tuple[Row | None, Row | None]]:
    """Of forward + backward, each with the original's."""

    def found(provider: str, metric: str) -> Row | None:
        mode = "forward_backward"
        return rows.find("nce", case=case, provider=provider, mode=mode, metric=metric)

    metrics = "time", "extra_peak_memory"
    return [(found(provider, metric), found("reference", metric)) for metric in metrics]


def nce_on_card(rows: Rows) -> str:
    """Methods against sizes: time and extra memory of forward + backward, with factors."""
    used: list[Row] = []

    def both(provider: str, case: str) -> str:
        pairs = [pair for pair in _time_and_memory(rows, provider, case) if pair[0]]
        used.extend(row for row, _ in pairs if row)
        return ", ".join(cell(*pair) for pair in pairs) or MISSING

    body = [
        [label, *(both(provider, case) for case in ON_CARD.values())]
        for provider, label in GPU_METHODS.items()
    ]
    return table(["", *ON_CARD], body, used)


def nce_on_cpu(rows: Rows) -> str:
    """For each kind of CPU one sentence: time and extra memory of forward + backward."""
    return "\n\n".join(_on_cpu(rows.on(*cpu.split()), cpu) for cpu in CPUS)


def _on_cpu(rows: Rows, cpu: str) -> str:
    found = {p: _time_and_memory(rows, p, SMALL) for p in (*PEERS, "torch_objective")}
    said = ", ".join(
        f"{METHODS[provider]} {' and '.join(cell(*pair) for pair in pairs)}"
        for provider, pairs in found.items()
    )
    used = [row for pairs in found.values() for row, _ in pairs if row]
    return f"CPU, {cpu}: {said}.\n\n{conditions(used)}" if used else f"CPU, {cpu}: {MISSING}."


def nce_large(rows: Rows) -> str:
    """The case whose scores the original's algorithm could not hold."""
    ours = "torch_objective"
    wanted = ("reference", "calculated_bytes"), (ours, "time"), (ours, "extra_peak_memory")
    stored, time, memory = found = [
        rows.find("nce", case=LARGE, provider=provider, metric=metric)
        for provider, metric in wanted
    ]
    body = [
        [METHODS["reference"], "", cell(stored) + (" (calculated)" if stored else "")],
        [METHODS[ours], cell(time), cell(memory)],
    ]
    header = ["", "forward + backward", "extra peak memory"]
    return table(header, body, [row for row in found if row])


def nce_grid(rows: Rows) -> str:
    """Every measured point on a GPU; rates count three products of the size of the scores."""
    used: list[Row] = []
    body = []
    for images, width, dtype in sorted(grid.GRID, key=lambda point: (point[2], *point[:2])):
        peak = rows.find("nce", case=grid.peak_key(dtype), metric="rate")
        for provider, label in ON_GPU.items():
            key = {"case": grid.grid_key(images, width, dtype), "provider": provider}
            forward = rows.find("nce", **key, mode="forward", metric="time")
            both, device, host, launches, memory, error = (
                rows.find("nce", **key, mode="forward_backward", metric=metric)
                for metric in GPU_METRICS
            )
            if both is None:
                continue
            rate = grid.product_flops(images, width, "forward_backward") / both["q50"] / 1e9
            share = f"{rate / peak['q50']:.0%}{mark(both, peak)}" if peak else MISSING
            line = [f"{label}, {dtype}", str(images), str(width), cell(forward), cell(both)]
            line += [f"{rate:.0f}{mark(both)}", share]
            rest = (device, host, launches, memory, error)
            body.append([*line, *(cell(row, absent="") for row in rest)])
            used += [row for row in (forward, both, device, host, memory, error, peak) if row]
    if not body:
        return NO_ROWS
    largest = rows.named("nce", case=grid.LARGEST_CASE, metric="largest_batch")
    said = f"Largest batch that ran: {cell(largest[-1] if largest else None)}."
    header = ["", "B", "D", "forward", "forward + backward", "TFLOP/s", "of peak"]
    header += ["device alone", "host", "launches", "extra peak memory", "error of gradients"]
    return table(header, body, used) + f"\n\n{said}"


def views(rows: Rows, cases: Mapping[str, str], metric: str) -> str:
    """Providers of two views against cases, with factors against torchvision on Pillow."""
    found = {}
    for row in rows.named("augment", metric=metric):
        if (case := row["case"].removesuffix(ALL_CORES)) in cases:
            found[case, row["provider"]] = row
    if not found:
        return NO_ROWS
    body = [
        [provider, *(cell(found.get((c, provider)), found.get((c, PILLOW))) for c in cases)]
        for provider in dict.fromkeys(provider for _, provider in found)
    ]
    return table(["", *cases.values()], body, found.values())


def small(rows: Rows, name: str, case: str | None = None, only: Sequence[str] = ()) -> str:
    """Any bench as providers against metrics, in the order of their rows; blank without a row."""
    found = rows.named(name, **({"case": case} if case else {}))
    cells = {(r["provider"], r["metric"]): r for r in found if not only or r["provider"] in only}
    if not cells:
        return NO_ROWS
    providers, metrics = (dict.fromkeys(names) for names in zip(*cells, strict=True))
    body = [[p, *(cell(cells.get((p, m)), absent="") for m in metrics)] for p in providers]
    return table(["", *(m.replace("_", " ") for m in metrics)], body, cells.values())


def data(rows: Rows) -> str:
    """Ways to read images, with their goals."""
    goals, found = GOALS["data"], rows.named("data")
    body = []
    for row in found:
        goal = goals.get(row["provider"])
        asked = [goal.text, judge(goal, rows)[1]] if goal else ["", ""]
        body.append([row["provider"], cell(row), *asked])
    return table(["", "one core", "goal", ""], body, found) if found else NO_ROWS


def mixture(rows: Rows) -> str:
    """Time of a training step, and how many plain steps it is."""
    found = rows.named("mixture")
    plain = rows.find("mixture", provider="plain")
    if plain is None:
        return NO_ROWS
    body = [
        [row["provider"], cell(row), f"{row['q50'] / plain['q50']:.2f}x{mark(row, plain)}"]
        for row in found
    ]
    return table(["", "training step", "of the plain step"], body, found)


def other_losses(rows: Rows) -> str:
    """Time and memory of each, with factors of ours against the definition."""
    body, used = [], []
    for case in OTHER_LOSSES:
        line = [case.label, ", ".join(f"{name} = {size}" for name, size in case.sizes.items())]
        for metric in ("time", "extra_peak_memory"):
            found = [
                rows.find("losses", case=f"cpu-{case.name}", provider=provider, metric=metric)
                for provider in LOSS_PROVIDERS
            ]
            line += [cell(row, found[0]) for row in found]
            used += [row for row in found if row]
        body.append(line)
    names = [f"{what}, {name}" for what in ("time", "memory") for name in LOSS_PROVIDERS]
    return table(["", "sizes", *names], body, used)


def quality(rows: Rows) -> str:
    """Mean and standard deviation at each step, and the seconds of training until there."""
    accuracies, seconds = quality_samples(rows), quality_samples(rows, "training_time")
    both = (OURS, REFERENCE_LOSS)
    if not all(accuracies[provider] for provider in both):
        return NO_ROWS

    def percent(values: Sequence[float]) -> str:
        if not values:
            return MISSING
        average, deviation = spread(list(values))
        return f"{average:.1f} ± {deviation:.1f} %" if len(values) > 1 else f"{average:.1f} %"

    untrained = ("raw pixels", "random weights")
    body = [[name, percent(accuracies.get(name, {}).get(0, ())), "", "", ""] for name in untrained]
    for step in sorted(accuracies[OURS]):
        times = [f"{mean(seconds[provider][step]) / 1e3:.0f} s" for provider in both]
        body.append([f"step {step}", *(percent(accuracies[p][step]) for p in both), *times])
    header = ["", *(f"{what}, {provider}" for what in ("probe", "time") for provider in both)]
    said = f"Mean and standard deviation, {len(accuracies[OURS][max(accuracies[OURS])])} seeds, one"
    shown = [row for row in rows.named("quality") if row["shapes"]["step"]]
    return table(header, body, shown).replace("Medians.", f"{said} thread a process. Medians.")


def compiled(rows: Rows) -> str:
    """What the compiler made of the kernels, the worst of every architecture and arithmetic."""
    if not rows.compiled:
        return "Not yet compiled."
    members: dict[str, list[Row]] = {}
    for row in rows.compiled:
        members.setdefault(f"{row['arch']}, {row['arithmetic']}", []).append(row)
    body = []
    for label, found in members.items():
        names = ("registers", "spills", "fp64", "shared_bytes")
        registers, spills, wide, shared = (max(row[name] for row in found) for name in names)
        products, loads = (sum(row[name] > 0 for row in found) for name in ("wgmma", "tma"))
        sizes = [str(len(found)), str(registers), str(spills), f"{shared / 1e3:.0f}"]
        body.append([label, *sizes, f"in {products}", f"in {loads}", str(wide)])
    versions = rows.compiled[-1]["versions"]
    said = f"Worst of each line. triton {versions['triton']}, torch {versions['torch']}."
    old = any(row["source"] != sources.digest("aot") for row in rows.compiled)
    header = ["", "kernels", "registers", "stack, bytes a thread", "shared memory, kB"]
    made = table([*header, "wgmma", "TMA", "float64"], body)
    return f"{made}\n\n{said} {STALE}" if old else f"{made}\n\n{said}"


def recipes() -> str:
    """One line a recipe, from its fields; parameters are counted on models without memory."""
    body = []
    for name, recipe in RECIPES.items():
        sizes = (recipe.ndf, recipe.n_rkhs, recipe.depth)
        millions = f"{traffic.parameters(recipe) / 1e6:.1f} M"
        length = f"{recipe.steps} steps" if recipe.steps else f"{recipe.epochs} epochs"
        line = [name, POLICIES[recipe.policy].size, "/".join(map(str, sizes)), millions]
        decay = ", ".join(map(str, recipe.milestones))
        body.append(map(str, [*line, recipe.batch_size, length, decay]))
    header = ["", "pixels", "ndf/n_rkhs/depth", "parameters, calculated", "batch", "length"]
    return table([*header, "decay"], body)

"""EDM2-XXL on 8 to 512 GPUs, modelled, for benchmarks/scaling.py. Nothing here ran on a GPU.

Counted on tensors without data, of the real objective: floating-point operations an image, and what
weights alone move through a GPU's memory in a pass (casts, normalised weights), however few images
it has. Both become seconds by rates that are assumptions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.scaling_measure import sizes_of
from benchmarks.scaling_model import (
    Seconds,
    Sizes,
    Stages,
    StatedLink,
    Work,
    collectives,
    iteration,
    sent_bytes,
)
from sid_ray.assemble import network_of
from sid_ray.config import DistillConfig
from sid_ray import engine
from sid_ray.fit import Machine, Planner, recommended, stage_variants
from sid_ray.known_networks import teacher_of
from sid_ray.memory import FAKE_SCORE, GENERATOR, GIB, WORD
from sid_ray.recipes import recipe, recipe_entry
from sid_ray.trace_memory import FusedAttention, run_phase, spec_network, trained_alone

RECIPE = "img512-xxl-sida"
PHASES = (FAKE_SCORE, GENERATOR)
GPUS = (8, 16, 32, 64, 128, 256, 512)
LINKS = (
    StatedLink("InfiniBand, 400 Gb/s a GPU", within=450e9, between=8 * 50e9),
    StatedLink("100 Gb/s a node", within=450e9, between=12.5e9),
)
# Words that a GPU moves for one parameter, operator by operator. Adam: gradient, master and second
# moment read, both written, the root and the quotient written and read. Normalising: the weight
# read for its norm and for the quotient, which is written, copied to the weight and to the master.
# Average: weight and mean read, the mix written, read and written once more.
ADAM_WORDS, NORMALISE_WORDS, AVERAGE_WORDS = 9, 7, 5


@dataclass(frozen=True)
class Rates:
    """What a GPU is assumed to do: ``peak`` operations a second, ``share`` of which is reached, and
    bytes a second of its memory."""

    peak: float = 989e12
    share: float = 0.4
    memory: float = 3.35e12
    gpu_gib: float = 80.0


@dataclass(frozen=True)
class Pass:
    """One pass of a phase: operations an image, bytes moved whatever the number of images."""

    flop: float
    moved: float

    def seconds(self, images: int, rates: Rates) -> float:
        return images * self.flop / (rates.peak * rates.share) + self.moved / rates.memory


class Moved(TorchDispatchMode):
    """Bytes that operators read and write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view:
            leaves = tree_leaves((args, kwargs, made))
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return made


def counted_pass(config: DistillConfig, nets: Sequence[Any], phase: str) -> Pass:
    """Counts a phase at one and two images: what is the same at both is the weights' own."""
    description, moved, flop = network_of(config, teacher_of(config)), [], 0
    with trained_alone(nets[1] if phase == FAKE_SCORE else nets[2]):
        for images in (1, 2):
            with Moved() as traffic, FusedAttention():
                run_phase(config, description, nets, phase, images)
            moved.append(traffic.bytes)
        with FlopCounterMode(display=False) as counter, FusedAttention():
            run_phase(config, description, nets, phase, 1)
        flop = counter.get_total_flops()
    return Pass(flop, 2 * moved[0] - moved[1])


@dataclass(frozen=True)
class Row:
    """One world size at one stage. ``images_s`` images a second, ``sent`` bytes of a GPU."""

    gpus: int
    stage: str
    micro_batch: int
    passes: int
    peak: int
    fits: bool
    seconds: Seconds
    sent: int
    images_s: float


class Model:
    """XXL's run at any world size and stage."""

    def __init__(self, rates: Rates, overlap: float = 0.0):
        self.rates, self.overlap = rates, overlap
        self.config = recipe(RECIPE)
        description = teacher_of(self.config)
        self.planner = Planner(description)
        nets = [
            spec_network(self.config, network_of(self.config, description), "meta")
            for _ in range(3)
        ]
        self.passes = {phase: counted_pass(self.config, nets, phase) for phase in PHASES}
        self.sizes: Sizes = sizes_of(nets[2], constrained=self.config.training.normalize_weights)

    @property
    def flop(self) -> float:
        """Operations an image."""
        return sum(one.flop for one in self.passes.values())

    def work(self, images: int) -> Work:
        each = WORD * self.sizes.parameters / self.rates.memory
        return Work(
            self.passes[FAKE_SCORE].seconds(images, self.rates),
            self.passes[GENERATOR].seconds(images, self.rates),
            adam=2 * ADAM_WORDS * each,
            normalise=2 * NORMALISE_WORDS * each,
            average=AVERAGE_WORDS * each,
        )

    def machine(self, gpus: int) -> Machine:
        return Machine.of(gpus, self.rates.gpu_gib)

    def chosen(self, gpus: int) -> str:
        """The stage that `sid-ray plan` recommends."""
        best = recommended(self.planner.rows(self.config, self.machine(gpus)), gpus)
        assert best is not None
        return best.stage

    def row(self, gpus: int, stage: str, link: StatedLink) -> Row:
        """At the largest micro-batch that fits; at the recipe's where none does."""
        config, machine = stage_variants(self.config)[stage], self.machine(gpus)
        largest = self.planner.largest(config, machine)
        micro = largest or self.config.training.group_size
        plan = replace(config.group_plan(1), world_size=gpus, micro_batch=micro)
        number, _, teacher = stage.partition(", ")
        stages = Stages(int(number), 3 if teacher else 0, engine.BUCKET)
        rounds = -(-plan.num_groups // gpus)
        # The last pass of a rank may hold fewer groups: seconds of a mean one.
        images = rounds * plan.group_size / plan.passes_a_rank
        found = iteration(self.work(images), plan, stages, self.sizes, link, overlap=self.overlap)
        sent = sent_bytes(collectives(stages, self.sizes, plan.passes_a_rank), gpus)
        peak = self.planner.peak(config, machine, micro).total
        return Row(
            gpus, stage, micro, plan.passes_a_rank, peak, bool(largest), found, sent,
            plan.batch_size / found.total,
        )  # fmt: skip

    def memory(self, gpus: int, stage: str) -> float:
        """GiB at the recipe's micro-batch."""
        config = stage_variants(self.config)[stage]
        return self.planner.peak(config, self.machine(gpus)).total / GIB


def assumed(model: Model) -> Iterator[str]:
    """What the tables rest on."""
    rates, passes = model.rates, model.passes
    yield f"EDM2-XXL modelled, not measured: {model.sizes.parameters:,} parameters, {RECIPE}"
    yield (
        f"counted: {model.flop / 1e9:,.0f} GFLOP an image; weights move "
        f"{passes[FAKE_SCORE].moved / GIB:.0f} GiB in a fake-score pass, "
        f"{passes[GENERATOR].moved / GIB:.0f} GiB in a generator pass, however few images it has"
    )
    yield (
        f"assumed: {rates.share:.0%} of {rates.peak / 1e12:g} TFLOP/s, {rates.memory / 1e12:g} TB/s "
        f"of memory, {LINKS[0].share:.0%} of stated bandwidths, {rates.gpu_gib:g} GiB, overlap "
        f"{model.overlap:g}"
    )


def main_table(model: Model, link: StatedLink, rows: Sequence[Row]) -> Iterator[str]:
    """One row a world size, at the stage that is recommended."""
    published = recipe_entry(RECIPE).published
    assert published is not None and published.images_seen is not None
    yield f"\n{link.name}, {published.images_seen:,} images:\n"
    yield (
        "| GPUs | ZeRO | micro-batch | passes | GiB a GPU | compute, s | communication, s | "
        "iteration, s | images/s | efficiency | hours |"
    )
    yield "|" + "---:|" * 11
    for row in rows:
        spent, efficiency = row.seconds, efficiency_of(row, rows[0])
        yield (
            f"| {row.gpus} | {row.stage} | {row.micro_batch} | {row.passes} "
            f"| {row.peak / GIB:.1f}{'' if row.fits else '!'} "
            f"| {spent.passes + spent.update:.2f} | {spent.communication - spent.hidden:.2f} "
            f"| {spent.total:.2f} | {row.images_s:,.0f} | {efficiency:.0%} "
            f"| {published.images_seen / row.images_s / 3600:,.0f} |"
        )


def efficiency_of(row: Row, first: Row) -> float:
    """Images a second and GPU, of those on the fewest GPUs."""
    return row.images_s / row.gpus / (first.images_s / first.gpus)


def stages_table(model: Model) -> Iterator[str]:
    """Every stage at three world sizes: images a second over both links."""
    yield "\nevery stage, each at the largest micro-batch that fits (GiB a GPU, GiB sent by a GPU):\n"
    names = " | ".join(f"images/s, {link.name}" for link in LINKS)
    yield f"| GPUs | ZeRO | micro-batch | GiB a GPU | at micro-batch 2 | sent, GiB | {names} |"
    yield "|" + "---:|" * 8
    for gpus in (8, 64, 512):
        for stage in stage_variants(model.config):
            rows = [model.row(gpus, stage, link) for link in LINKS]
            first = rows[0]
            speeds = " | ".join(f"{row.images_s:,.0f}" for row in rows)
            yield (
                f"| {gpus} | {stage} | {first.micro_batch} | {first.peak / GIB:.1f} "
                f"| {model.memory(gpus, stage):.1f} | {first.sent / GIB:.1f} | {speeds} |"
            )


def groups_table(config: DistillConfig) -> Iterator[str]:
    """How many GPUs each size's groups allow, and what the last of them idle."""
    yield "\ngroups of the EDM2 recipes; computed: groups over groups with padding, on so many GPUs:\n"
    yield (
        "| recipe | group | most GPUs | "
        + " | ".join(f"{gpus}" for gpus in (*GPUS, 96, 384))
        + " |"
    )
    yield "|---|" + "---:|" * (len(GPUS) + 4)
    for size in ("xs", "s", "m", "l", "xl", "xxl"):
        training = recipe(f"img512-{size}-sida").training
        groups = training.batch_size // training.group_size
        cells = [
            f"{groups / (gpus * -(-groups // gpus)):.0%}" if gpus <= groups else "refused"
            for gpus in (*GPUS, 96, 384)
        ]
        yield f"| img512-{size}-sida | {training.group_size} | {groups} | {' | '.join(cells)} |"


def recipe_micro_batch(model: Model) -> str:
    """What the recipe's own micro-batch would cost."""
    size = model.config.training.group_size
    times = [model.passes[phase] for phase in PHASES]
    spent = sum(one.seconds(size, model.rates) for one in times)
    weights = sum(one.moved for one in times) / model.rates.memory
    return (
        f"\nat the recipe's micro-batch of {size}, {weights / spent:.0%} of a pass would be the "
        "weights' own; hence the largest micro-batch that fits"
    )


def show_model(rates: Rates, overlap: float, picture: Path) -> None:
    """Prints the tables and draws the picture."""
    model = Model(rates, overlap)
    chosen = {gpus: model.chosen(gpus) for gpus in GPUS}
    rows = {link: [model.row(gpus, chosen[gpus], link) for gpus in GPUS] for link in LINKS}
    print("\n".join(assumed(model)))
    for link, own in rows.items():
        print("\n".join(main_table(model, link, own)), flush=True)
    print(recipe_micro_batch(model))
    print("\n".join(stages_table(model)))
    print("\n".join(groups_table(model.config)))
    memory = {
        stage: [model.memory(gpus, stage) for gpus in GPUS]
        for stage in stage_variants(model.config)
    }
    draw(rows, memory, model, picture)
    print(f"\n{picture}")


def draw(
    rows: dict[StatedLink, list[Row]], memory: dict[str, list[float]], model: Model, path: Path
) -> None:
    """Left images a second, right GiB a GPU, both against GPUs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (speed, space) = plt.subplots(1, 2, figsize=(10, 4.4), constrained_layout=True)
    first = next(iter(rows.values()))[0]
    ideal = [first.images_s * gpus / first.gpus for gpus in GPUS]
    speed.plot(GPUS, ideal, color="grey", linestyle="--", linewidth=1, label="ideal, from 8 GPUs")
    for link, own in rows.items():
        last = own[-1]
        label = f"{link.name}: {efficiency_of(last, own[0]):.0%} at {last.gpus}"
        speed.plot(GPUS, [row.images_s for row in own], marker="o", markersize=4, label=label)
    speed.set(yscale="log", ylabel="images a second", title="at the stage that the plan recommends")
    for stage, sizes in memory.items():
        words = f"ZeRO {stage}" + (" too" if "teacher" in stage else "")
        space.plot(GPUS, sizes, marker="o", markersize=4, label=words)
    size = model.config.training.group_size
    space.set(ylabel="GiB a GPU", title=f"at micro-batch {size}")
    space.set_ylim(bottom=0, top=1.35 * max(memory["0"]))
    for axes in (speed, space):
        axes.set_xscale("log", base=2)
        axes.set_xticks(GPUS, [str(gpus) for gpus in GPUS])
        axes.set_xlabel("GPUs")
        axes.legend(frameon=False, fontsize=9, loc="upper left", ncols=1 if axes is speed else 2)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.suptitle(
        f"EDM2-XXL, SiDA: modelled, not measured ({model.rates.share:.0%} of "
        f"{model.rates.peak / 1e12:g} TFLOP/s a GPU assumed)"
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)

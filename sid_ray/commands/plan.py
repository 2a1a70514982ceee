"""`sid-ray plan`: what a run would need on its GPUs, before any of them is asked for."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sid_ray.commands.checks import PLAN, Patient, enforce
from sid_ray.commands.plan_options import PlanOptions
from sid_ray.config.distill_config import DistillConfig, evaluator_resources, replace
from sid_ray.device.found import gpus_here
from sid_ray.errors import UserError
from sid_ray.objectives.spec import objective_spec
from sid_ray.planning.choice import ResourceChoice, networks_in_words
from sid_ray.planning.choose import choose_measured
from sid_ray.planning.fit import (
    NONE,
    Gpus,
    Planner,
    StageRow,
    micro_batch_of,
    micro_batches,
    plainly,
)
from sid_ray.planning.machine import Machine
from sid_ray.planning.memory import (
    FAKE_SCORE,
    GENERATOR,
    GIB,
    KINDS,
    PASS,
    RESERVE,
    TEACHER,
    Moment,
)
from sid_ray.planning.sizes import at_size
from sid_ray.recipes.known_networks import teacher_of, text_bytes

MIB = 1 << 20
WIDTH = 116
GPUS, GIB_EACH = 8, 80.0  # where neither flags nor this machine say


def plan(config: DistillConfig, asked: PlanOptions, flags: Sequence[str] = ()) -> int:
    """Prints the plan. Raises UserError for a run that cannot fit."""
    if config.resources.use_gpu is False:
        raise UserError("sid-ray plan counts GPUs' memory: leave --resources.no-use-gpu out")
    config = replace(config, resources__use_gpu=True)
    enforce(Patient(config, config.output.folder), PLAN)
    there = asked_machine(config, asked)
    told: list[str] = []
    choice = choose_measured(config, teacher_of(config), there, told.append, asked.reserve)
    settled = settled_now(choice, there)
    machine = Gpus(settled.chosen.num_workers, there.gpu_bytes, int(asked.reserve * GIB))
    planner = Planner(teacher_of(config), text_bytes(config))
    rows = planner.rows(settled, machine)
    best = row_of(rows, settled)
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if terminal else WIDTH)
    for line in (*told, *heading(settled, planner, machine, there)):
        console.print(line, markup=False)
    unit = MIB if planner.network.parameters * 4 < GIB // 4 else GIB
    console.print(stage_table(rows, best, machine, unit))
    console.print(role_table(best.peak, unit))
    console.print(f"auto: {choice.line}", markup=False)
    for line in notes(planner, best, machine, asked):
        console.print(line, markup=False)
    return 0


def asked_machine(config: DistillConfig, asked: PlanOptions) -> Machine:
    """The machine that a person names; this one, as far as nothing is named."""
    here = gpus_here() if not (asked.gpus and asked.gpu_memory) else []
    gpus = asked.gpus or len(here) or GPUS
    memory_gib = asked.gpu_memory or min((gpu.memory for gpu in here), default=0) / GIB or GIB_EACH
    taken = evaluator_resources(config)
    machine = Machine.alike(asked.nodes, gpus // asked.nodes, memory_gib, taken)
    names = {gpu.name for gpu in here}
    if asked.gpus or asked.gpu_memory or len(names) != 1:
        return machine
    nodes = tuple(dataclasses.replace(node, gpu=here[0].name) for node in machine.nodes)
    return dataclasses.replace(machine, nodes=nodes)  # bench may have measured it


def settled_now(choice: ResourceChoice, machine: Machine) -> DistillConfig:
    """The config for the workers that there are room for now."""
    resources = choice.config.chosen
    workers = min(resources.num_workers, max(machine.offers(on_gpu=True), resources.min_workers))
    config = at_size(choice.config, choice.sizes, workers)
    return replace(config, resources__num_workers=workers, resources__min_workers=workers)


def row_of(rows: Sequence[StageRow], config: DistillConfig) -> StageRow:
    """The row of the stage that the config has."""
    own = config.chosen
    stages = (own.zero_stage, own.teacher_zero_stage)
    for row in rows:
        has = row.config.chosen
        if (has.zero_stage, has.teacher_zero_stage) == stages:
            return row
    return rows[0]  # on one GPU there is one way


def heading(config: DistillConfig, planner: Planner, machine: Gpus, there: Machine) -> list[str]:
    networks = networks_in_words(config, planner.sizes(config), planner.description.family)
    label = objective_spec(config.objective.name).label
    micro, sizes = micro_batch_of(config), micro_batches(config, machine.gpus)
    nodes = f" on {len(there.nodes)} nodes" if len(there.nodes) > 1 else ""
    return [
        f"{config.recipe} on {machine.gpus} GPU{'s' * (machine.gpus != 1)} of "
        f"{machine.memory / GIB:g} GiB{nodes}",
        f"{label}: {networks}, {config.training.precision} bodies; "
        f"batches of {config.training.batch_size} in groups of {config.training.group_size}; "
        f"micro-batch {micro} (1 to {sizes[-1]} possible)",
    ]


def number(size: float, unit: int) -> str:
    """Bytes in a unit; a dash for none."""
    return f"{size / unit:,.1f}" if size else "-"


COLUMNS = {
    "weights": ("weights", "gathered"),
    "masters": ("masters",),
    "gradients": ("gradients",),
    "moments": ("moments",),
    "EMA": ("average",),
    "activations": ("activations",),
    "buckets": ("buckets",),
    "other": ("other",),
}


def plain_table(title: str) -> Table:
    """Narrow enough for a terminal of 110 columns."""
    return Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def stage_table(rows: Sequence[StageRow], best: StageRow, machine: Gpus, unit: int) -> Table:
    """One row a stage, at its fullest moment with the micro-batch that is taken."""
    name = "GiB" if unit == GIB else "MiB"
    table = plain_table(f"{name} on each GPU at its fullest moment, micro-batch as above")
    table.add_column("ZeRO", no_wrap=True)
    for column in (*COLUMNS, "total", "sent"):
        table.add_column(column, justify="right")
    table.add_column("largest\nmicro-batch", justify="right")
    for row in rows:
        sizes = [sum(map(row.peak.of_kind, kinds)) for kinds in COLUMNS.values()]
        cells = [number(size, unit) for size in (*sizes, row.peak.total, row.sent)]
        cells[-2] += "" if row.fits else "!"
        stage = row.stage + (" *" if row is best else "")
        table.add_row(stage, *cells, str(row.largest or "none"))
    table.caption = (
        f"* taken   ! more than {machine.memory / GIB:g} GiB   "
        "sent: by a GPU in an iteration, at most"
    )
    if rows[0].stage == NONE:
        table.caption += "\nnone: on one GPU there is nobody to share with, whatever stage is set"
    return table


ROLES = {
    TEACHER: "teacher",
    FAKE_SCORE: "fake score",
    GENERATOR: "generator",
    PASS: "one pass",
    RESERVE: "reserve",
}


def role_table(moment: Moment, unit: int) -> Table:
    """One row a role, of one moment."""
    kinds = [kind for kind in KINDS if moment.of_kind(kind)]
    name = "GiB" if unit == GIB else "MiB"
    table = plain_table(f"{name} by role at that stage, fullest in the {shown_stage(moment.name)}")
    table.add_column("")
    for kind in (*kinds, "total"):
        table.add_column(kind, justify="right")
    for role, words in ROLES.items():
        own = moment.of_role(role)
        sizes = [own.get(kind, 0) for kind in kinds]
        table.add_row(words, *(number(size, unit) for size in (*sizes, sum(sizes))))
    return table


def shown_stage(name: str) -> str:
    return name.replace("fake_score", "fake score")


def notes(planner: Planner, best: StageRow, machine: Gpus, asked: PlanOptions) -> list[str]:
    """What it needs, checkpoints, and what is assumed."""
    size, lines = planner.checkpoint(best.config), list[str]()
    start = planner.host_start(best.config, machine, micro_batch_of(best.config))
    together = f", with all on one node {start * machine.gpus / GIB:.1f} GiB" * (machine.gpus > 1)
    lines.append(
        f"host memory at the start: {start / GIB:.1f} GiB a worker, which reads the network for "
        f"itself{together}"
    )
    if plainly(best.config).offload_optimizer:
        lines.append(
            f"host memory: {best.host / GIB:.1f} GiB a worker, with copies for checkpoints; on one "
            "of them the whole average too"
        )
    size_words = f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"
    lines += [
        f"checkpoint: {size_words}, written in {size / GIB / asked.disk_rate:.1f} s "
        f"({asked.disk_rate:g} GiB/s assumed, --disk-rate), uploaded behind the training in "
        f"{size / GIB / asked.upload_rate:.1f} s ({asked.upload_rate:g} GiB/s assumed, "
        "--upload-rate)",
        f"of the other: {machine.reserve / GIB:g} GiB assumed for CUDA, NCCL, workspaces and "
        "fragments (--reserve). Traced and counted, not measured on a GPU: docs/plan.md",
    ]
    return lines

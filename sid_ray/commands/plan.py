"""`sid-ray plan`: what a run would need on its GPUs, before any of them is asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sid_ray.commands.checks import PLAN, Patient, enforce
from sid_ray.commands.plan_options import PlanOptions
from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.objectives.spec import objective_spec
from sid_ray.planning.fit import (
    NONE,
    Gpus,
    Planner,
    StageRow,
    check_any_fits,
    flags_of_plan,
    micro_batch_of,
    micro_batches,
    recommended,
)
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
from sid_ray.recipes.known_networks import teacher_of, text_bytes

MIB = 1 << 20
WIDTH = 116


def plan(config: DistillConfig, asked: PlanOptions, flags: Sequence[str] = ()) -> int:
    """Prints the plan. Raises UserError for a run that cannot fit."""
    gpus = asked.gpus or config.resources.num_workers
    config = replace(config, resources__num_workers=gpus, resources__use_gpu=True)
    least = min(gpus, config.resources.min_workers)
    enforce(Patient(replace(config, resources__min_workers=least), config.output.folder), PLAN)
    machine = Gpus.of(gpus, asked.gpu_memory, asked.reserve)
    planner = Planner(teacher_of(config), text_bytes(config))
    rows = check_any_fits(planner, config, machine)
    best = recommended(rows, gpus)
    assert best is not None  # else check_any_fits had raised
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if terminal else WIDTH)
    for line in heading(config, planner, machine):
        console.print(line, markup=False)
    unit = MIB if planner.network.parameters * 4 < GIB // 4 else GIB
    console.print(stage_table(rows, best, machine, unit))
    console.print(role_table(used_peak(planner, best, machine), unit))
    for line in notes(planner, best, machine, asked):
        console.print(line, markup=False)
    return 0


def heading(config: DistillConfig, planner: Planner, machine: Gpus) -> list[str]:
    count = planner.network.parameters
    label = objective_spec(config.objective.name).label
    micro, sizes = micro_batch_of(config), micro_batches(config, machine.gpus)
    return [
        f"{config.recipe} on {machine.gpus} GPUs of {machine.memory / GIB:g} GiB",
        f"{label}: three networks of {count:,} parameters, {config.training.precision} bodies; "
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
    """One row a stage, at its fullest moment with the config's micro-batch."""
    name = "GiB" if unit == GIB else "MiB"
    table = plain_table(f"{name} on each GPU at its fullest moment, micro-batch as configured")
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
        f"* recommended   ! more than {machine.memory / GIB:g} GiB   "
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
    table = plain_table(
        f"{name} by role at the recommended stage, fullest in the {shown_stage(moment.name)}"
    )
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


def used_peak(planner: Planner, row: StageRow, machine: Gpus) -> Moment:
    """The recommended stage's fullest moment, at a micro-batch that fits."""
    return planner.peak(row.config, machine, 0 if row.fits else row.largest)


def notes(planner: Planner, best: StageRow, machine: Gpus, asked: PlanOptions) -> list[str]:
    """What to take, checkpoints, and what is assumed."""
    config = best.config
    micro = micro_batch_of(config) if best.fits else best.largest
    flags = " ".join(
        [
            f"--resources.num-workers {machine.gpus} --resources.use-gpu",
            *flags_of_plan(best.stage, 0 if best.fits else micro),
        ]
    )
    total = used_peak(planner, best, machine).total
    size = planner.checkpoint(config)
    lines = [
        f"take: {flags}   ({total / GIB:.1f} of {machine.memory / GIB:g} GiB with micro-batch "
        f"{micro})",
    ]
    if best.host:
        lines.append(f"host memory: {best.host / GIB:.1f} GiB a worker, offloaded")
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

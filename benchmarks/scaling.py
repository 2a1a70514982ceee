"""Step time and memory against world size: measured to 4 CPU workers, modelled for XXL to 512 GPUs.

    python -m benchmarks.scaling [--only measured|model] [--workers 1 2 3 4] [--iterations 4]
        [--flops 989e12] [--share 0.4] [--memory-rate 3.35e12] [--gpu-memory 80]
        [--overlap 0] [--picture docs/scaling.png]

measured: real workers over gloo, a thread each, ZeRO 0 to 3, beside benchmarks/scaling_model.py.
The model is given one worker's seconds of compute, collectives by themselves at each number of
workers, and how many cores the workers get; never a step of more than one worker.

model: EDM2-XXL on 8 to 512 GPUs by rates that are assumptions: nothing here ran on a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import scaling_measure
from benchmarks.scaling_measure import (
    BUCKET,
    DESCRIPTION,
    PLAIN,
    config_of,
    measure,
    sizes_of,
)
from benchmarks.scaling_model import (
    MeasuredLink,
    Stages,
    Work,
    collectives,
    iteration,
    sent_bytes,
)
from sid_ray.distributed import deepspeed_role
from sid_ray.groups import GroupPlan
from sid_ray.planning import memory
from sid_ray.planning.fit import Gpus, Planner
from sid_ray.planning.spec_networks import spec_network
from tests.support.trajectories import spawn

MIB = 1 << 20
STAGES = (0, 1, 2, 3)
Found = dict[int | str, dict[str, Any]]  # stage -> figures of scaling_measure.measure


def work_of(alone: Mapping[str, float], passes: int) -> Work:
    """One worker's figures as what the model wants."""
    return Work(
        fake_pass=alone["fake pass"] / passes,
        generator_pass=alone["generator pass"] / passes,
        adam=alone["adam"],
        normalise=alone.get("normalise", 0.0),
        average=alone["average"],
    )


def percent(modelled: float, measured: float) -> str:
    return f"{100 * (modelled / measured - 1):+.0f} %"


def pair(modelled: float, measured: float, digits: int = 2) -> str:
    return f"{modelled:,.{digits}f} | {measured:,.{digits}f} | {percent(modelled, measured)}"


def run_workers(workers: int, iterations: int) -> tuple[Found, dict]:
    stages = ((PLAIN,) if workers == 1 else ()) + STAGES
    with tempfile.TemporaryDirectory() as folder:
        spawn(measure, workers, folder, stages, iterations)
        return torch.load(Path(folder) / "found.pt", weights_only=False)


class Comparison:
    """Measured figures beside the model's, a row each."""

    def __init__(self) -> None:
        deepspeed_role.BUCKET = BUCKET  # the planner reads it too
        self.planner = Planner(DESCRIPTION)
        network = spec_network(config_of(), DESCRIPTION, "meta")
        self.sizes = sizes_of(network, constrained=True)
        self.work: dict[int, Work] = {}
        self.errors: dict[str, list[float]] = {"step": [], "computing": [], "memory": []}

    def calibrate(self, found: Found) -> None:
        passes = config_of().group_plan(1).passes_a_rank
        self.work = {stage: work_of(found[stage], passes) for stage in STAGES}

    def peak(self, stage: int, workers: int) -> int:
        config, machine = config_of(stage), Gpus(workers, 1 << 60, 0)
        return self.planner.peak(config, machine).total

    def alone(self, found: Found) -> list[str]:
        """One worker: seconds that the model is given."""
        header = "| stage | fake pass, ms | generator pass, ms | Adam | normalising | average | s |"
        lines = [header, "|---|" + "---:|" * 6]
        for stage, row in found.items():
            work = work_of(row, config_of().group_plan(1).passes_a_rank)
            cells = (work.fake_pass, work.generator_pass, work.adam, work.normalise, work.average)
            shown = " | ".join(f"{1000 * cell:.0f}" for cell in cells)
            lines.append(f"| {stage} | {shown} | {row['step']:.2f} |")
        plain, modelled = found[PLAIN]["peak"] / MIB, self.peak(0, 1) / MIB
        lines.append(f"\nplain: MiB modelled | measured | error: {pair(modelled, plain, 1)}\n")
        return lines

    def row(
        self, workers: int, stage: int, found: Mapping[str, Any], link: MeasuredLink
    ) -> list[str]:
        """Two lines: seconds, and bytes."""
        plan: GroupPlan = config_of(stage).group_plan(workers)
        stages = Stages(stage, bucket=BUCKET)
        seconds = iteration(
            self.work[stage], plan, stages, self.sizes, link, cores=min(workers, found["cores"])
        )
        exclusive = iteration(self.work[stage], plan, stages, self.sizes, link)
        computed = sum(
            found.get(name, 0.0)
            for name in ("fake pass", "generator pass", "adam", "normalise", "average")
        )
        computing = exclusive.passes + exclusive.update
        peak = self.peak(stage, workers)
        sent = sent_bytes(collectives(stages, self.sizes, plan.passes_a_rank), workers)
        for name, modelled, measured in (
            ("step", seconds.total, found["step"]),
            ("computing", computing, computed),
            ("memory", peak, found["peak"]),
        ):
            self.errors[name].append(abs(modelled / measured - 1))
        seconds_cells = (
            f"{found['cores']:.1f}",
            pair(seconds.total, found["step"]),
            pair(computing, computed),
            f"{seconds.communication:.2f} | {found['waiting']:.2f}",
        )
        bytes_cells = (
            pair(sent / MIB, found["sent"] / MIB, 1),
            f"{self.planned_sent(stage, workers, plan) / MIB:,.1f}",
            pair(peak / MIB, found["peak"] / MIB, 1),
            f"{found['rss'] / MIB:,.0f}",
        )
        return [
            f"| {workers} | {stage} | {' | '.join(cells)} |"
            for cells in (seconds_cells, bytes_cells)
        ]

    def planned_sent(self, stage: int, workers: int, plan: GroupPlan) -> int:
        """What `sid-ray plan` says of the same."""
        layout = self.planner.layout(config_of(stage), Gpus(workers, 1 << 60, 0))
        return memory.sent_bytes(self.planner.network, layout, plan.passes_a_rank)

    def summary(self) -> str:
        words = {
            name: f"{100 * statistics.median(errors):.0f} % ({100 * max(errors):.0f} %)"
            for name, errors in self.errors.items()
        }
        return (
            "error, median (largest), of more than one worker: step "
            f"{words['step']}, seconds on a core {words['computing']}, memory {words['memory']}"
        )


SECONDS = (
    "| P | ZeRO | cores | step, s: model | measured | error "
    "| on a core, s: model | measured | error | collectives, s: model | waited |"
)
BYTES = (
    "| P | ZeRO | sent, MiB: model | counted | error | plan says "
    "| most, MiB: model | measured | error | RSS |"
)


def show_measured(workers: Sequence[int], iterations: int) -> None:
    """Prints one worker's seconds, collectives by themselves, and the comparison."""
    comparison = Comparison()
    found, _ = run_workers(1, iterations)
    comparison.calibrate(found)
    count = comparison.sizes.parameters
    print(f"network of {count:,} parameters, {count * 4 / MIB:.1f} MiB in float32\n")
    print("\n".join(comparison.alone(found)), flush=True)
    rows, speeds = [], []
    for number in workers:
        if number == 1:
            continue
        found, points = run_workers(number, iterations)
        speeds.append(speeds_of(number, points))
        link = MeasuredLink({number: points})
        rows += [comparison.row(number, int(stage), found[stage], link) for stage in found]
    print("collectives by themselves, ms:\n\n" + "\n".join(speed_header() + speeds))
    for header, lines in zip((SECONDS, BYTES), zip(*rows, strict=True), strict=True):
        print("\n" + header + "\n|" + "---:|" * (header.count("|") - 1))
        print("\n".join(lines))
    print("\n" + comparison.summary(), flush=True)


def speed_header() -> list[str]:
    return ["| P | kind | elements: ms |", "|---|---|---|"]


def speeds_of(workers: int, points: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    return "\n".join(
        f"| {workers} | {kind} | {', '.join(f'{size:,}: {1000 * s:.1f}' for size, s in sizes)} |"
        for kind, sizes in points.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("measured", "model"))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--flops", type=float, default=989e12, help="of a GPU, stated, bfloat16")
    parser.add_argument("--share", type=float, default=0.4, help="of them reached: assumed")
    parser.add_argument("--memory-rate", type=float, default=3.35e12, help="bytes a second, stated")
    parser.add_argument("--gpu-memory", type=float, default=80.0, help="GiB")
    parser.add_argument("--overlap", type=float, default=0.0, help="of communication, 0 to 1")
    parser.add_argument("--picture", type=Path, default=Path("docs/scaling.png"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.only != "model":
        show_measured(given.workers, given.iterations)
    if given.only != "measured":
        from benchmarks.scaling_tables import show_model
        from benchmarks.scaling_xxl import Rates

        deepspeed_role.BUCKET = scaling_measure.OWN_BUCKET
        rates = Rates(given.flops, given.share, given.memory_rate, given.gpu_memory)
        show_model(rates, given.overlap, given.picture)


if __name__ == "__main__":
    main()

"""`sid-ray bench`: which settings are fastest on this machine, measured within a few minutes."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence

from rich.console import Console

from sid_ray.commands.bench_options import BenchOptions
from sid_ray.commands.benching.report import Measurement, bench_table, lines_above, values_of
from sid_ray.commands.benching.search import MICRO, Descent, NotMeasuredError, fields_to_try
from sid_ray.commands.benching.short import PASSES
from sid_ray.commands.benching.turns import Turns
from sid_ray.config.chosen import left_open
from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.errors import UserError
from sid_ray.planning.choose import choose_resources
from sid_ray.planning.fit import micro_batch_of, micro_batches
from sid_ray.planning.flops import iteration_flops
from sid_ray.planning.here import machine_here
from sid_ray.planning.profile import (
    SETTINGS,
    Profile,
    batch_key,
    network_key,
    versions_here,
    write_profile,
)
from sid_ray.recipes.known_networks import teacher_of, text_bytes
from sid_ray.storage.durable import replace_file
from sid_ray.storage.places import check_file
from sid_ray.weights.description import ModelDescription

CPU = "cpu"  # as a profile calls a machine without GPUs
WIDTH = 150
CPU_FLOPS, ITERATIONS = 1e10, 20  # FLOP/s of a CPU worker at least, and iterations to have time for


def bench(config: DistillConfig, asked: BenchOptions, flags: Sequence[str] = ()) -> int:
    """Measures, prints, keeps. Raises UserError where nothing can be measured."""
    fixed = [name for name in SETTINGS if name not in left_open(config.resources)]
    if asked.json is not None:
        check_file(asked.json, "--json")
    description = teacher_of(config)
    flop = iteration_flops(config, description)
    config, machine = placed(config, description)
    if machine == CPU and config.training.precision == "float16":
        tell("float16 takes torch's slow path on a CPU, a convolution 20 to 200 times slower, and "
             "that is measured; --training.precision float32 measures this CPU")  # fmt: skip
    if machine == CPU and MICRO not in fixed:
        config = with_affordable_passes(config, flop, asked.minutes)
    workers = config.chosen.num_workers
    deadline = time.monotonic() + 60 * asked.minutes
    with Turns(description, workers, machine != CPU, deadline, tell) as turns:
        search = Descent(config, workers, turns.measure, fields_to_try(fixed, workers))
        try:
            search.run()
        except NotMeasuredError as error:
            raise nothing_measured(error, asked, search) from None
        ceiling = turns.ceiling
    profile = profile_of_best(search, description, machine)
    measured = Measurement(
        config.recipe, config.training.batch_size, flop, ceiling, search.rows, profile
    )
    show(measured)
    path = ""
    if asked.keep:
        path = str(write_profile(profile))
        print(f"profile: {path}; runs of {config.recipe} on such a machine start with it")
    if asked.json is not None:
        replace_file(asked.json, json.dumps(values_of(measured, path), indent=2) + "\n")
    return 0


def tell(text: str) -> None:
    """Progress, which is no part of the table."""
    print(text, file=sys.stderr, flush=True)


def placed(config: DistillConfig, description: ModelDescription) -> tuple[DistillConfig, str]:
    """The config as a run would begin it on this machine without a profile, and the machine's name.

    No evaluator takes a part of it. Raises UserError where the run has no room or does not fit.
    """
    machine = dataclasses.replace(machine_here(config), taken={})
    config = replace(config, output__folder="/nowhere")
    choice = choose_resources(config, description, machine, text_bytes(config))
    return choice.config, machine.gpu if choice.config.chosen.use_gpu else CPU


def with_affordable_passes(config: DistillConfig, flop: int, minutes: float) -> DistillConfig:
    """On a CPU: a micro-batch to begin with of which there is time for ITERATIONS short iterations.

    ``flop``: of an image's iteration. A GPU is so much faster that it needs no such thing.
    """
    budget = CPU_FLOPS * 60 * minutes / ITERATIONS
    sizes = micro_batches(config, config.chosen.num_workers)
    fitting = [size for size in sizes if PASSES * size * flop <= budget]
    first = max(fitting, default=sizes[0])
    if first >= micro_batch_of(config):
        return config
    tell(f"begins with {first} images a pass, of the {micro_batch_of(config)} of a run: more would "
         "take too long here")  # fmt: skip
    return replace(config, resources__micro_batch=first)


def profile_of_best(search: Descent, description: ModelDescription, machine: str) -> Profile:
    best, found = search.best, search.best_found
    return Profile(
        machine,
        search.world_size,
        network_key(description),
        best.training.precision,
        batch_key(best),
        search.settings,
        found.seconds,
        found.peak_gib,
        versions_here(),
    )


def nothing_measured(error: NotMeasuredError, asked: BenchOptions, search: Descent) -> UserError:
    """Where not even the settings as they are could be measured."""
    if error.late:
        return UserError(
            f"no iteration ended within {asked.minutes:g} minutes: give --minutes more, or fewer "
            "images a pass, --resources.micro-batch 1"
        )
    tried = "; ".join(f"{row.change}: {row.note}" for row in search.rows)
    return UserError(f"nothing could be measured: {'; '.join(filter(None, (tried, str(error))))}")


def show(measured: Measurement) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    for line in lines_above(measured):
        console.print(line, markup=False)
    console.print(bench_table(measured))
    console.print(f"take: {measured.profile.flags}", markup=False)

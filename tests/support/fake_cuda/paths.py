"""How each path is rehearsed, by the project's own code. Loads torch: behind the guard."""

from __future__ import annotations

import dataclasses
import logging
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from sid_ray.actors import build
from sid_ray.actors.build import BuiltNetworks, WorkerSettings, build_networks
from sid_ray.actors.measures import reduce_means
from sid_ray.checkpoint.copies import Copies
from sid_ray.checkpoint.snapshot import take_snapshot
from sid_ray.config.chosen import plain
from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.config.sections import ScheduleConfig, TeacherConfig
from sid_ray.data.source import DataSource
from sid_ray.denoisers.registry import family_of
from sid_ray.distributed.fragments import whole_state
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.recipes.registry import recipe
from sid_ray.training import draws_ahead
from sid_ray.training.assemble import network_of, objective_of
from sid_ray.training.draws import Maker
from sid_ray.training.draws_ahead import Coming, DrawsAhead, lane_to
from sid_ray.training.step import StepSettings, Sums, step
from sid_ray.weights.description import ModelDescription
from tests.support.fake_cuda import faults, others
from tests.support.fake_cuda.cases import GROUP, NETWORKS, PASSES, Case
from tests.support.fake_cuda.machine import CUDA, fake_module, join_fake_group, rehearsal
from tests.support.fake_cuda.watch import Counts, Watch

ONE_GPU = {"resources__use_gpu": True, "resources__num_workers": 1, "resources__min_workers": 1}


# From a case to objects ---------------------------------------------------------------------------


def description_of(case: Case) -> ModelDescription:
    if case.path == "recipe":
        return network_of(config_of(case), teacher_of(config_of(case)))
    return ModelDescription(case.family, NETWORKS[case.family, case.variant])


def config_of(case: Case) -> DistillConfig:
    """A config as a recipe would have it, or that of the recipe which ``variant`` names."""
    if case.path == "recipe":
        return valued(replace(recipe(case.variant), **ONE_GPU, **case.config))
    family, (images, in_a_pass) = family_of(case.family), PASSES[case.passes]
    config = replace(
        DistillConfig(
            recipe="rehearsal",
            teacher=TeacherConfig(source="builtin:rehearsal"),
            schedule=ScheduleConfig(kind=family.noise.kind),
        ),
        objective__name=case.objective,
        objective__logvar=family.logvar(NETWORKS[case.family, case.variant]),
        training__batch_size=images * case.world_size,
        training__group_size=GROUP,
        training__precision=case.precision,
        resources__num_workers=case.world_size,
        resources__micro_batch=in_a_pass,
        resources__zero_stage=case.stage,
        resources__teacher_zero_stage=case.teacher_stage,
        resources__offload_optimizer=case.offload,
        resources__activation_checkpointing=case.recompute,
        resources__use_gpu=True,
    )
    return valued(replace(config, **case.config))


def valued(config: DistillConfig) -> DistillConfig:
    """With what a start chooses where nothing is known of the machine."""
    return dataclasses.replace(config, resources=plain(config.resources))


def laid_out(description: ModelDescription) -> nn.Module:
    """A network of fake tensors in host memory, as load_model has it."""
    with torch.device("meta"):
        network = family_of(description.family).build(description.network)
    return fake_module(network.eval().requires_grad_(False))


def built(case: Case, config: DistillConfig) -> BuiltNetworks:
    """The three roles, built as a worker builds them."""
    description = description_of(case)
    settings = WorkerSettings(config.to_json(), "", "", "", "", "key", False, None, None)
    with mock.patch.object(
        build, "load_model", lambda *args, **kwargs: (laid_out(description), description)
    ):
        return build_networks(config, settings, case.world_size, CUDA)


def source_of(case: Case) -> tuple[DataSource, Tensor | None]:
    """Classes, images and prompts, whatever the family reads; and the empty prompt's embedding."""
    description = description_of(case)
    family, network = family_of(description.family), description.network
    shape, count = family.shape(network), 16
    images = torch.randn(count, *shape)
    if not family.reads_text:
        classes = torch.zeros(count, dtype=torch.int64)
        return DataSource(shape, family.label_dim(network), classes, images), None
    text = others.text_of(case.family, case.precision, case.variant)
    prompts = [f"picture {index}" for index in range(count)]
    return DataSource(shape, images=images, prompts=prompts, embed=text.embed), text.null()


# What is watched in which part --------------------------------------------------------------------


class Parted:
    """An object whose named methods are watched as parts; all else is the object's own."""

    def __init__(self, watch: Watch, inner: Any, parts: dict[str, str]):
        self._watch, self._inner, self._parts = watch, inner, parts

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        part = self._parts.get(name)
        if part is None or found is None:
            return found
        made = parted(self._watch, found, part)
        # An objective's *_sums give a function, or None: it is what runs.
        return (lambda seen: parted(self._watch, found(seen), part)) if "_sums" in name else made


def parted(watch: Watch, function: Callable | None, part: str) -> Any:
    if function is None:
        return None

    def within(*args: Any, **kwargs: Any) -> Any:
        with watch.during(part):
            return function(*args, **kwargs)

    return within


ROLE = {"backward": "backward", "update": "update", "average_into": "average"}
OBJECTIVE = dict.fromkeys(("fake_loss", "generator_loss", "fake_sums", "generator_sums"), "forward")


class AtOnce:
    """An executor that does at once what it is given: a thread would leave the mode of fakes."""

    def __init__(self, workers: int, name: str, begin: Callable[[], None]):
        begin()

    def submit(self, function: Callable, *args: Any) -> Future:
        future: Future = Future()
        future.set_result(function(*args))
        return future


# Paths --------------------------------------------------------------------------------------------


def train(case: Case, watch: Watch) -> None:
    """Iterations; of a whole "run" also what comes between two: report, weights for an evaluation,
    snapshot.
    """
    config = config_of(case).check()
    with watch.during("build"):
        networks = built(case, config)
        source, null_text = source_of(case)
    plan = config.group_plan(case.world_size)
    objective = objective_of(config, null_text)
    make = Maker(source, plan, 0, objective.draw_spec)
    with mock.patch.object(draws_ahead, "ThreadPoolExecutor", AtOnce):
        draws = DrawsAhead(make, Coming(plan, 0, objective.trains_generator), lane_to(CUDA))
    trainee = networks.trainee
    watched = dataclasses.replace(
        trainee,
        fake_score=Parted(watch, trainee.fake_score, ROLE),
        generator=Parted(watch, trainee.generator, ROLE),
    )
    settings, sums = StepSettings(plan, 0, 1000, 0.05), Sums()
    for _ in range(case.iterations):
        drop(watch, "step", "draws", "forward", "backward", "update", "average")
        with watch.during("step"):
            step(
                watched,
                Parted(watch, objective, OBJECTIVE),  # type: ignore[arg-type]
                settings,
                parted(watch, draws, "draws"),
                sums,
            )
    if case.path == "run":
        between(config, networks, sums, watch)


def drop(watch: Watch, *parts: str) -> None:
    for part in parts:
        watch.counts.pop(part, None)


def between(config: DistillConfig, networks: BuiltNetworks, sums: Sums, watch: Watch) -> None:
    trainee, copies = networks.trainee, Copies.off(CUDA)
    with watch.during("report"):
        reduce_means(sums)
    with watch.during("snapshot"):
        description = networks.description
        take_snapshot(trainee, networks.roles, description, config.stored(), copies)
    with watch.during("writing"):
        copies.wait()
    copies.hold()
    with watch.during("hand-over"):
        copies.begin()
        for _, value in whole_state(trainee.generator_ema):
            copies.of(value, lasting=False)


PATHS: dict[str, Callable[[Case, Watch], None]] = {
    "train": train,
    "run": train,
    "recipe": train,
    "fault": faults.fault,
} | others.PATHS


# One case -----------------------------------------------------------------------------------------


def rehearsed(case: Case) -> dict[str, Any]:
    """A case's outcome as cases.Rehearsed.from_json reads it. Never raises."""
    error, refused, counts = "", Counter[str](), dict[str, Counts]()
    logging.disable(logging.WARNING)  # fake tensors log what they raise
    try:
        if case.shares:
            join_fake_group(case.world_size)
        with rehearsal() as watch:
            counts, refused = watch.counts, watch.faults  # as they fill
            PATHS[case.path](case, watch)
    except Exception as raised:
        lines = traceback.extract_tb(raised.__traceback__)
        ours = [line for line in lines if "/sid_ray/" in line.filename] or list(lines)
        last = ours[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        error = f"{type(raised).__name__} at {place}: {str(raised).strip()[:300]}"
    finally:
        logging.disable(logging.NOTSET)
    return {
        "case": case.to_json(),
        "error": error,
        "faults": refused,
        "parts": {name: part_of(found) for name, found in counts.items()},
    }


def part_of(counts: Counts) -> dict[str, Any]:
    values = {field.name: getattr(counts, field.name) for field in dataclasses.fields(counts)}
    del values["operations"]
    return values

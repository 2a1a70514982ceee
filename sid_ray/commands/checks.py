"""The checks of a run before it starts: one list, in one order, for every command that looks.

A check yields findings. `sid-ray doctor` prints them all; whatever starts a run refuses it at the
first that failed, with the same words. What needs the run's own Ray (its resources, its GPUs'
memory) is looked at by actors/trainer.py when that Ray is there.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.errors import UserError
from sid_ray.ray_setup.environment import joins_cluster
from sid_ray.ray_setup.start import check_ray, ray_folder, small_shared_memory
from sid_ray.recipes.registry import check_supplied
from sid_ray.run_folder import RunFolder
from sid_ray.storage.places import in_words, one_line

OK, WARNING, FAILED, SKIPPED = "ok", "warning", "FAILED", "skipped"
DISTILL, SUBMIT, SWEEP, PLAN, DOCTOR = "distill", "submit", "sweep", "plan", "doctor"


@dataclass(frozen=True)
class Answer:
    """An answer of a check."""

    state: str
    text: str


@dataclass
class Patient:
    """What is examined; later checks use what earlier ones found."""

    config: DistillConfig | None
    runs: str  # the folder of all runs
    deep: bool = False
    found: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One thing that is looked at."""

    name: str
    looks_at: str
    look: str
    """Place of its function within sid_ray, MODULE:NAME, of a Patient: yields findings, or raises
    UserError or OSError for one that failed. Loaded when it is looked."""
    places: tuple[str, ...]
    """Commands that run it."""
    of_recipe: bool = True
    """Whether it needs a config."""
    quick: bool = False
    """Whether it loads nothing heavy."""


EVERYWHERE = (DISTILL, SUBMIT, SWEEP, PLAN, DOCTOR)
RUNS = (DISTILL, SWEEP, DOCTOR)
ONLY_DOCTOR = (DOCTOR,)
CHECKS = (
    Check(
        "versions", "libraries", "commands.doctor:check_versions", ONLY_DOCTOR, of_recipe=False
    ),
    Check(
        "machine", "CPUs, memory, GPUs", "commands.doctor:check_machine", ONLY_DOCTOR,
        of_recipe=False,
    ),
    Check("config", "every field", "commands.checks:check_config", EVERYWHERE, quick=True),
    Check(
        "given", "what no recipe can hold", "commands.checks:check_given",
        (DISTILL, SUBMIT, SWEEP, DOCTOR), quick=True,
    ),
    Check(
        "ray", "where Ray keeps its files, or RAY_ADDRESS", "commands.checks:check_own_ray",
        RUNS, of_recipe=False, quick=True,
    ),
    Check(
        "cache", "the folder of what is fetched", "commands.doctor:check_cache", ONLY_DOCTOR,
        of_recipe=False,
    ),
    Check(
        "storage", "the folder of all runs", "commands.doctor:check_storage", ONLY_DOCTOR,
        of_recipe=False,
    ),
    Check("folder", "the run's own folder", "commands.checks:check_run_folder", (DISTILL, DOCTOR)),
    Check(
        "tracking", "MLflow's store", "commands.doctor:check_tracking_store", RUNS, of_recipe=False
    ),
    Check(
        "cluster", "nodes of a joined cluster", "commands.doctor:look_at_nodes", ONLY_DOCTOR,
        of_recipe=False,
    ),
    Check("teacher", "the networks", "commands.doctor:check_teacher_fits", RUNS),
    Check("scores", "what scores images", "commands.doctor:check_scores", RUNS),
    Check("data", "files of a prepared set", "commands.doctor:check_data_set", ONLY_DOCTOR),
    Check("memory", "what is taken, and fits", "commands.doctor:look_at_memory", ONLY_DOCTOR),
    Check("disk", "space for checkpoints", "commands.doctor:check_disk", ONLY_DOCTOR),
)  # fmt: skip


def check_config(patient: Patient) -> Iterator[Answer]:
    """Every field, and fields against each other."""
    assert patient.config is not None
    patient.config.check()
    yield Answer(OK, f"{patient.config.recipe}: every field is in its range")


def check_given(patient: Patient) -> Iterator[Answer]:
    """What a person has to give, as no recipe can hold it."""
    assert patient.config is not None
    check_supplied(patient.config)
    yield from ()


def check_own_ray(patient: Patient) -> Iterator[Answer]:
    """Where a Ray of this machine keeps its sockets and logs; of a cluster whether it is there."""
    if joins_cluster():
        patient.found["cluster"] = False
        check_ray()
        patient.found["cluster"] = True
        yield Answer(SKIPPED, "RAY_ADDRESS is set: the cluster has temporary folders of its own")
        return
    folder, why = ray_folder()
    check_ray(lambda text: None)
    if why:
        yield Answer(
            WARNING,
            f"{why}: Ray's own files go to {folder}/ray",
        )
    else:
        yield Answer(OK, f"{folder}/ray: for Ray's own files")
    if trouble := small_shared_memory():
        yield Answer(WARNING, trouble)


def check_run_folder(patient: Patient) -> Iterator[Answer]:
    """Where the run is kept, and its log. Leaves nothing behind that was not there."""
    assert patient.config is not None
    RunFolder.of(replace(patient.config, output__folder=patient.runs)).check()
    yield Answer(OK, f"run {patient.config.run_name!r} can be kept there")


def checks_of(place: str) -> Iterator[Check]:
    """Those that a command runs, in their order."""
    return (check for check in CHECKS if place in check.places)


def look_through(check: Check, patient: Patient) -> Iterator[Answer]:
    yield from pkgutil.resolve_name(f"sid_ray.{check.look}")(patient)


def enforce(patient: Patient, place: str, quick: bool = False) -> dict[str, Any]:
    """What the checks of a command have found, by name. ``quick``: those that load nothing heavy.

    Raises UserError for the first finding that failed.
    """
    for check in checks_of(place):
        if quick and not check.quick:
            continue
        try:
            for finding in look_through(check, patient):
                if finding.state == FAILED:
                    raise UserError(finding.text)
        except OSError as error:
            raise UserError(in_words(error)) from None
    return patient.found


def examine(patient: Patient, names: Sequence[str] = ()) -> Iterator[tuple[str, Answer]]:
    """Every finding of doctor's checks, or of some of them, as they come; no check raises."""
    wrong = ""
    for check in checks_of(DOCTOR):
        if (names and check.name not in names) or (check.of_recipe and patient.config is None):
            continue
        if check.of_recipe and wrong:
            yield check.name, Answer(SKIPPED, f"not looked at: the {wrong} comes first")
            continue
        try:
            for finding in look_through(check, patient):
                yield check.name, finding
        except UserError as error:
            yield check.name, Answer(FAILED, one_line(str(error)))
            if check.quick and check.of_recipe:
                wrong = "config"
        except OSError as error:
            yield check.name, Answer(FAILED, in_words(error))

"""`sid-ray submit`: checks a run here, sends it to a cluster as a Ray job, and follows it.

What is sent is what `ray job submit --working-dir DIR ... -- python SCRIPT RECIPE FLAGS` sends, and
that line is printed. A folder that is no checkout goes with this package beside it, as one of Ray's
py_modules: the cluster runs the version that has checked the run.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sid_ray
from sid_ray.commands.arguments import OfRecipe
from sid_ray.commands.checks import SUBMIT, Patient, enforce
from sid_ray.config.auto import AUTO
from sid_ray.config.confidential import named_secret, secrets_of
from sid_ray.config.distill_config import (
    DistillConfig,
    evaluator_resources,
    named_places,
    replace,
)
from sid_ray.errors import UserError
from sid_ray.jobs.client import connect, follow_job, live_cluster, send
from sid_ray.jobs.cluster import Cluster, read_cluster
from sid_ray.jobs.upload import Upload, check_no_secrets, check_size, upload_of
from sid_ray.recipes.registry import recipe_entry
from sid_ray.storage.places import expanded
from sid_ray.storage.schemes import is_path
from sid_ray.tracking.mlflow_run import shown_uri

LOCAL = "http://127.0.0.1:8265"
PLACES = (
    "teacher.source",
    "teacher.text_encoder",
    "teacher.vae",
    "teacher.lora",
    "teacher.initial_generator",
    "data.source",
    "evaluation.reference",
    "evaluation.feature_weights",
    "evaluation.clip_weights",
    "evaluation.vae",
)
PACKAGE_FILE = "sid_ray/cli.py"  # in an upload that brings the package itself
OK, WARNING = "ok", "warning"
STOP_WAIT = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}  # Ray gives a job that is stopped 3 s to save
Line = tuple[str, str, str]  # state, what was looked at, the finding


@dataclass(frozen=True)
class SubmitOptions(OfRecipe):
    """Checks the run here, sends it to a Ray cluster as `ray job submit` does, and follows it. The
    same command resumes. Exit code 0 when the run finished, 1 when it did not, 2 for wrong input,
    130 after Ctrl-C, which leaves the job running.
    """

    cluster: str = ""
    """File of `ray up`, or a KubeRay RayCluster: its GPUs are held against the plan."""
    address: str = ""
    """URL of its Jobs API; empty for RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or http://127.0.0.1:8265.
    """
    runtime_env: str = ""
    """File that says how nodes get the libraries that their image lacks: runtime_env.yaml."""
    working_dir: str = "."
    """What is uploaded. This package goes with it, unless the folder is a checkout of sid_ray."""
    wait: bool = True
    """Follow the job until it ends."""

    def check(self) -> None:
        """Raises UserError for what makes no sense."""
        if self.cluster and self.address:
            raise UserError("--cluster and --address: one of them")


def entry_of(config: DistillConfig, flags: Sequence[str], upload: Upload) -> list[str]:
    """The job's command: the recipe's own entry script where the upload is a checkout."""
    if PACKAGE_FILE not in upload.files:
        return ["python", "-m", "sid_ray.cli", "distill", config.recipe, *flags]
    return ["python", recipe_entry(config.recipe).script, config.recipe, *flags]


def runtime_env_of(path: str) -> dict[str, Any]:
    """A file, or the default. Raises UserError where it is no runtime_env, or holds a secret."""
    if not path:
        return {"env_vars": dict(STOP_WAIT)}
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text()) or {}
    except OSError as error:
        raise UserError(f"--runtime-env {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--runtime-env {path} is no YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(found, dict):
        raise UserError(f"--runtime-env {path}: expected keys such as pip and env_vars")
    secret = [name for name in found.get("env_vars") or {} if named_secret(name)]
    if secret:
        raise UserError(
            f"--runtime-env {path}: env_vars names {', '.join(secret)}, and Ray shows env_vars to "
            "whoever sees its dashboard: set it where `ray start` runs, mount a secret, or give "
            "the machines a role (docs/jobs.md)"
        )
    return found


def check_entry(entry: Sequence[str], upload: Upload, secrets: Mapping[str, str]) -> None:
    """Raises UserError where the command cannot run from the upload, or tells a secret."""
    if PACKAGE_FILE in upload.files and entry[1] not in upload.files:
        raise UserError(
            f"--working-dir {upload.folder} has sid_ray, but no {entry[1]} to upload: give a whole "
            "checkout of sid_ray, or a folder without"
        )
    text = " ".join(entry)
    for variable, value in secrets.items():
        if value in text:
            raise UserError(
                f"a flag holds the value of {variable}: flags stand in process lists and job "
                "metadata; the cluster's own environment must hold it"
            )


def check_places(config: DistillConfig, upload: Upload) -> None:
    """Raises UserError where the run names files that no node will have."""
    folder = config.output.folder
    if is_path(folder) and not Path(folder).is_absolute():
        raise UserError(
            f"output.folder {folder!r} is relative, and a job's working directory is a temporary "
            "copy that is deleted: give --output.folder s3://BUCKET/runs, or an absolute path that "
            "all nodes share"
        )
    for field, named in named_places(config, PLACES):
        place = named.partition("#")[0]
        relative = place and is_path(place) and not place.startswith(("/", "~"))
        if relative and not upload.holds(place):
            raise UserError(
                f"{field} {place!r} is not in the upload of {upload.folder}: give s3://, https://, "
                "hf:// or an absolute path that all nodes share (or take it out of .rayignore)"
            )


def look_at_storage(config: DistillConfig, cluster: Cluster) -> Iterator[Line]:
    """Where the run's results go. Only a warning where this machine cannot tell."""
    folder, server = config.output.folder, config.storage
    if is_path(folder):
        shared = cluster.nodes == 1
        text = f"{folder} must be one disk that all {cluster.nodes or ''} nodes share"
        yield (OK, "storage", f"{folder} on the node") if shared else (WARNING, "storage", text)
    else:
        from sid_ray.commands.doctor import reach

        try:
            reach(folder, server.endpoint_url, server.region)
            yield OK, "storage", f"{folder}: written, read back, removed from here"
        except (UserError, OSError) as error:
            yield WARNING, "storage", f"not from here ({error}); the job tries before it starts"
        if not config.output.tracking_uri:
            text = "sqlite on the head's disk, unless the cluster has MLFLOW_TRACKING_URI"
            yield WARNING, "mlflow", f"{text}: --output.tracking-uri names a server"
    for field, place in named_places(config, PLACES):
        if place.startswith(("/", "~")):
            yield WARNING, "files", f"{field} {place} must be on every node"


def look_at_teacher(config: DistillConfig, upload: Upload) -> Iterator[Line]:
    """The networks, as the run will look at them, where all of them are here already.

    Raises UserError where they cannot be loaded or do not fit.
    """
    from sid_ray.training.assemble import find_start

    chosen = config.teacher
    for name in ("source", "text_encoder", "vae", "lora", "initial_generator"):
        place = str(getattr(chosen, name))
        if not place or place.startswith("builtin:"):
            continue
        is_file = is_path(place) and expanded(place).is_absolute()
        found = expanded(place) if is_file else upload.folder / place
        if not is_path(place) or not found.exists():
            yield OK, "teacher", f"{place}: looked at by the job, before the run starts"
            return
        config = replace(config, **{f"teacher__{name}": str(found)})
    find_start(config, with_data=False)
    yield OK, "teacher", f"{chosen.source}: can be loaded, and has what it needs beside it"


def memory_of_job(config: DistillConfig, cluster: Cluster) -> Iterator[Line]:
    """What the run would take of the cluster's GPUs. Raises UserError where it cannot fit."""
    resources = config.resources
    if resources.use_gpu is False or (resources.use_gpu == AUTO and not cluster.gpus):
        return
    if not cluster.gpus or not cluster.memory_gib:
        text = f"GPUs not known yet: sid-ray plan {config.recipe} counts; the run chooses there"
        yield WARNING, "memory", text
        return
    from sid_ray.planning.choose import choose_measured
    from sid_ray.planning.machine import Machine
    from sid_ray.recipes.known_networks import teacher_of

    gpus, told = cluster.gpus, list[str]()
    nodes = Machine.alike(1, gpus, cluster.memory_gib, evaluator_resources(config)).nodes
    machine = Machine(nodes, fixed=False, can_hold={"GPU": gpus}, taken=evaluator_resources(config))
    choice = choose_measured(config, teacher_of(config), machine, told.append)
    yield OK, "resources", choice.line
    if resources.num_workers != AUTO and gpus < resources.num_workers:
        text = f"{gpus} GPUs at most for {resources.num_workers} workers"
        yield WARNING, "workers", text


def with_package(runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """The same where this package goes along: Ray unpacks it and puts it on the import path."""
    package = str(Path(sid_ray.__file__).parent)
    return {**runtime_env, "py_modules": [*(runtime_env.get("py_modules") or ()), package]}


def typed(
    entry: Sequence[str], args: SubmitOptions, runtime_env: Mapping[str, Any], address: str
) -> str:
    """The line that sends the same with Ray's own command."""
    line = ["ray", "job", "submit", "--address", address, "--working-dir", args.working_dir]
    if args.runtime_env and entry[1] != "-m":  # else the package is added to the file's
        line += ["--runtime-env", args.runtime_env]
    else:
        line += ["--runtime-env-json", json.dumps(runtime_env)]
    return f"{shlex.join(line)} -- {shlex.join(entry)}"


def show_line(line: Line) -> None:
    state, name, text = line
    print(f"{state:8} {name:9} {text}", flush=True)


def submit(config: DistillConfig, options: SubmitOptions, flags: Sequence[str]) -> int:
    """Looks at the config first. Raises UserError."""
    enforce(Patient(config, config.output.folder), SUBMIT)
    return run_submit(config, options, flags)


def run_submit(config: DistillConfig, args: SubmitOptions, flags: Sequence[str]) -> int:
    """Checks, sends and follows. Returns the exit code.

    Raises UserError before anything is sent.
    """
    secrets = secrets_of(os.environ)
    runtime_env = runtime_env_of(args.runtime_env)
    upload = upload_of(expanded(args.working_dir), runtime_env.get("excludes") or ())
    entry = entry_of(config, flags, upload)
    uploads = [upload]
    if PACKAGE_FILE not in upload.files:
        runtime_env = with_package(runtime_env)
        uploads.append(upload_of(Path(sid_ray.__file__).parent))
    check_entry(entry, upload, secrets)
    for each in uploads:
        check_size(each)
        check_no_secrets(each, secrets)
    check_places(config, upload)
    cluster = read_cluster(Path(args.cluster)) if args.cluster else None
    show_line((OK, "upload", f"{' and sid_ray: '.join(map(str, uploads))}, no secret found"))
    for line in look_at_teacher(config, upload):
        show_line(line)
    # Ray's client lets RAY_API_SERVER_ADDRESS win over what it is given.
    if args.address:
        os.environ["RAY_API_SERVER_ADDRESS"] = args.address
    named = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or LOCAL
    client = connect(named, cluster.reach if cluster else "")
    live = live_cluster(client)
    for line in look_at_storage(config, cluster or live):
        show_line(line)
    for line in memory_of_job(config, cluster if cluster and cluster.memory_gib else live):
        show_line(line)
    address = shown_uri(client.get_address())
    print(typed(entry, args, runtime_env, address), flush=True)
    job = send(client, shlex.join(entry), {**runtime_env, "working_dir": str(upload.folder)})
    print(
        f"job {job}\n  follow  ray job logs --follow --address {address} {job}\n"
        f"  stop    ray job stop --address {address} {job}",
        flush=True,
    )
    return follow_job(client, job) if args.wait else 0

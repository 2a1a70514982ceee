"""`sid-ray doctor`: everything that a run will need, looked at before it starts.

Each check answers with a line; one that fails says what to do next. Checks stand for themselves:
one that cannot be made because of another's failure says so.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.text import Text
from tyro.conf import Positional, arg

from sid_ray.commands.arguments import OfRecipe
from sid_ray.commands.checks import FAILED, OK, SKIPPED, WARNING, Answer, Patient, examine
from sid_ray.config.auto import AUTO
from sid_ray.config.distill_config import DistillConfig, evaluator_resources, replace
from sid_ray.errors import UserError
from sid_ray.planning.machine import Machine, Node
from sid_ray.ray_setup.environment import joins_cluster
from sid_ray.run_folder import runs_folder
from sid_ray.storage.cache import cache_folder
from sid_ray.storage.places import check_folder, expanded
from sid_ray.storage.s3 import set_endpoint
from sid_ray.storage.schemes import is_path
from sid_ray.storage.shared import Token, answer, not_shared
from sid_ray.storage.store import Store, probe

STYLES = {OK: "green", WARNING: "yellow", FAILED: "bold red", SKIPPED: "dim"}
SHOWN = ("torch", "ray", "deepspeed", "pyarrow", "huggingface_hub", "mlflow")
GIB = 1 << 30
SPARE_GIB = 1.0
MAX_LINES = 10  # findings of one check


@dataclass(frozen=True)
class DoctorOptions(OfRecipe):
    """Checks versions, the machine, storage, and with a RECIPE its teacher, its data against their
    manifest, and memory and disk against the plan. A remote teacher is fetched, as the run would.
    Exit code 0 when nothing fails, 1 otherwise.
    """

    recipe: Annotated[str, Positional, arg(metavar="RECIPE")] = ""
    """Name of a recipe; without one this machine is looked at."""
    deep: bool = False
    """Read every sample of a prepared data set, not only its files' sizes and footers."""
    device: bool = False
    """Verify the GPUs of this machine instead, in under 10 minutes, and write a report. Exit code 2
    where there is no GPU to use.
    """
    cpu: bool = False
    """With --device: rehearse its checks on the CPU, with small networks."""
    only: str = ""
    """With --device: these checks alone, a comma between their names."""
    report: str = ""
    """With --device: folder of the report; empty for device-report-DATE-TIME here."""

    def check(self) -> None:
        """Raises UserError for arguments that do not go together."""
        if not self.device:
            for name in ("cpu", "only", "report"):
                if getattr(self, name):
                    raise UserError(f"--{name} belongs to sid-ray doctor --device")
        elif self.recipe or self.deep:
            raise UserError("--device looks at this machine alone: leave the recipe and --deep out")


def check_versions(patient: Patient) -> Iterator[Answer]:
    """Installed libraries against what this version of sid_ray asks for."""
    from packaging.requirements import Requirement

    wrong = False
    for line in requires("sid_ray") or ():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            has = version(wanted.name)
        except PackageNotFoundError:
            has = ""
        if not has or not wanted.specifier.contains(has, prereleases=True):
            wrong = True
            yield Answer(
                FAILED,
                f"{wanted.name} {has or 'is missing'}, needed {wanted.specifier}: "
                f"pip install '{wanted.name}{wanted.specifier}'",
            )
    if not wrong:
        listed = ", ".join(f"{name} {version(name)}" for name in SHOWN)
        yield Answer(OK, f"Python {platform.python_version()}, {listed}")


def check_machine(patient: Patient) -> Iterator[Answer]:
    """Processors, memory and GPUs of this machine against what the run asks for."""
    from sid_ray.device.found import gpus_here, no_gpu_reason, wasted_gpus_reason

    cores = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    found = gpus_here()
    gpus = len(found)
    shown = f"{cores} CPUs, {memory:.0f} GiB memory, "
    shown += f"{gpus} GPUs ({found[0].name})" if gpus else "no GPU"
    yield Answer(OK, shown)
    config = patient.config
    wasted = wasted_gpus_reason()
    if wasted and (config is None or config.resources.use_gpu is not True):
        yield Answer(WARNING, wasted)
    if config is None or joins_cluster():
        return  # the workers are elsewhere
    resources = config.resources
    on_gpu = gpus > 0 if resources.use_gpu == AUTO else resources.use_gpu
    kind, there = ("GPUs", gpus) if on_gpu else ("CPUs", cores)
    if on_gpu and not gpus:
        yield Answer(
            FAILED,
            f"resources.use_gpu is set: {no_gpu_reason()}; or join a cluster with RAY_ADDRESS",
        )
    elif resources.num_workers != AUTO and resources.num_workers > there:
        state = FAILED if on_gpu else WARNING
        yield Answer(
            state,
            f"{resources.num_workers} workers on {there} {kind}: lower --resources.num-workers",
        )


def check_cache(patient: Patient) -> Iterator[Answer]:
    """Where what is fetched, and what was evaluated, is kept on this machine."""
    folder = cache_folder()
    check_folder(folder, "the cache (SID_RAY_CACHE)")
    yield Answer(OK, f"{folder}: can be written")


def look_at_nodes(patient: Patient) -> Iterator[Answer]:
    """Every node of a joined cluster: its libraries, its way to storage, its processors."""
    from sid_ray.actors.nodes import look_at_cluster

    if not joins_cluster():
        yield Answer(SKIPPED, "RAY_ADDRESS names none: the run starts a Ray of its own here")
        return
    if not patient.found.get("cluster", True):
        yield Answer(SKIPPED, "not looked at: RAY_ADDRESS comes first")
        return
    token = Token.new(Store.at(patient.runs))
    written = not token.write()
    try:
        config = anywhere(patient.config)
        seen = seen_here(config)
        nodes = look_at_cluster(partial(reach_together, config, token, written, seen))
        unseen = [n.name for n in nodes if n.token is not None and not n.token.seen()]
        for node in nodes:
            if node.token is not None:
                node.token.remove()
    finally:
        token.remove()
    expected = {name: version(name) for name in nodes[0].versions if name != "Python"}
    expected["Python"] = platform.python_version()
    for node in nodes:
        differing = [
            f"{name} {node.versions[name]} where this machine has {expected[name]}"
            for name in node.versions
            if node.versions[name] != expected[name]
        ]
        if differing:
            yield Answer(FAILED, f"{node.name}: {', '.join(differing)}: install the same there")
        if node.trouble:
            yield Answer(FAILED, f"{node.name}: {node.trouble}")
        elif node.name in unseen:
            wrong = [f"what {node.name} writes is not seen here"]
            yield Answer(FAILED, str(not_shared(patient.runs, wrong, "--output.folder")))
    gpus = sum(node.gpus for node in nodes)
    patient.found["nodes"] = nodes
    cpus = sum(node.cpus for node in nodes)
    yield Answer(OK, f"{len(nodes)} nodes, {cpus:.0f} CPUs, {gpus:.0f} GPUs")
    if patient.config is not None:
        resources = patient.config.resources
        on_gpu = gpus > 0 if resources.use_gpu == AUTO else resources.use_gpu
        kind, there = ("GPUs", gpus) if on_gpu else ("CPUs", cpus)
        least = 1 if resources.min_workers == AUTO else resources.min_workers
        if there < least:
            yield Answer(
                WARNING,
                f"{least} workers at least on {there:.0f} {kind}: the run will wait for nodes",
            )


def seen_here(config: DistillConfig | None) -> dict[str, Any]:
    """What a run's workers must find as this machine does: its data and teacher on disks."""
    from sid_ray.actors.proof import contents
    from sid_ray.weights.address import parse_source

    if config is None:
        return {}
    return contents(config, parse_source(config.teacher.source).location)


def anywhere(config: DistillConfig | None) -> DistillConfig | None:
    """The config with absolute paths, which mean the same in every node's working directory."""
    if config is None:
        return None
    places = {"data__source": config.data.source, "teacher__source": config.teacher.source}
    for name, place in places.items():
        if place and is_path(place):
            config = replace(config, **{name: str(expanded(place).absolute())})
    return config


def reach(runs: str, endpoint_url: str, region: str) -> None:
    """What a node must be able to do with storage. Raises StoreError, OSError, UserError."""
    set_endpoint(endpoint_url, region)
    probe(Store.at(runs))


def reach_together(
    config: DistillConfig | None, token: Token, written: bool, expected: dict[str, Any], works: bool
) -> Token | None:
    """``reach``, and whether a node shares what this machine has.

    ``written``: whether the token is there. ``works``: whether workers may be on the node. Returns
    a token of that node, in the same folder.
    """
    from sid_ray.actors.proof import Sight, check

    server = (config or DistillConfig()).storage
    reach(token.store.url, server.endpoint_url, server.region)
    if not (works and written):
        return None
    wrong, mine = answer(token, "node", "the machine that asks")
    if wrong:
        raise not_shared(token.store.url, [f"this node {wrong}"], "--output.folder")
    if config is not None and expected:
        check(token.store.url, (), [Sight("this node", (), seen_here(config))], expected)
    return mine


def check_storage(patient: Patient) -> Iterator[Answer]:
    """The folder of all runs: written, read back, replaced; its space where it is a disk."""
    store = Store.at(patient.runs)
    seconds = probe(store)
    server = store.scheme.server()
    at = f" at {server}" if server else ""
    yield Answer(OK, f"{store}{at}: written, read back, replaced, removed in {seconds:.2f} s")


def check_tracking_store(patient: Patient) -> Iterator[Answer]:
    """MLflow's store: whether it takes what a run will tell, and keeps the run's experiment."""
    from sid_ray.config.distill_config import replace
    from sid_ray.tracking.mlflow_state import AwayError, look_at_tracking

    config = replace(patient.config or DistillConfig(), output__folder=patient.runs)
    experiment = config.output.experiment
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        if os.environ.get(name) not in (None, "", experiment):
            yield Answer(
                WARNING,
                f"{name} is set, but not read: a run goes to experiment {experiment!r}; "
                "--output.experiment NAME names another",
            )
    try:
        yield Answer(OK, look_at_tracking(config))
    except AwayError as error:
        yield Answer(
            WARNING,
            f"MLflow does not answer now ({error}): a run keeps its numbers and sends them later",
        )


def check_teacher_fits(patient: Patient) -> Iterator[Answer]:
    """The teacher against the recipe: its kind, resolution, classes, text; SiD2A's generator."""
    assert patient.config is not None
    from sid_ray.denoisers.registry import family_of
    from sid_ray.planning.choice import networks_in_words
    from sid_ray.planning.fit import Planner
    from sid_ray.training.assemble import find_start

    start = find_start(patient.config)
    patient.found["teacher"], patient.found["start"] = start.description, start
    family, network = family_of(start.description.family), start.description.network
    channels, height, width = family.shape(network)
    classes = family.label_dim(network)
    text = f", reads text with {start.components.text}" if family.reads_text else ""
    variant = start.description.notes.get("variant")
    text += f", {variant} weights, read as float32" if variant else ""
    yield Answer(
        OK,
        f"{patient.config.teacher.source}: {start.description.family}, {channels}x{height}x{width}"
        f", {classes or 'no'} classes{text}: fits the recipe and its data",
    )
    if patient.config.adapter.rank:
        networks = Planner(start.description).sizes(patient.config)
        yield Answer(OK, networks_in_words(patient.config, networks, start.description.family))


def check_scores(patient: Patient) -> Iterator[Answer]:
    """What scores images while training and at the end: extractor, CLIP, VAE, reference."""
    assert patient.config is not None
    from sid_ray.commands.distill import check_evaluation

    evaluation = patient.config.evaluation
    if not (evaluation.every or evaluation.final_report):
        yield Answer(SKIPPED, "no scores are asked for")
    elif "start" not in patient.found:
        yield Answer(SKIPPED, "not looked at: the teacher comes first")
    else:
        check_evaluation(patient.config, patient.found["start"])
        yield Answer(OK, f"{evaluation.metrics} in {evaluation.feature_space}")


def check_data_set(patient: Patient) -> Iterator[Answer]:
    """A prepared data set against its manifest; others by name."""
    assert patient.config is not None
    from sid_ray.data.check import check_set
    from sid_ray.data.manifest import read_manifest
    from sid_ray.data.source import is_prepared

    data = patient.config.data
    if not is_prepared(data):
        yield Answer(OK, f"{data.name}: ships, or gives labels or prompts alone")
        return
    store = Store.at(data.source)
    manifest = read_manifest(store)
    wrong = check_set(store, patient.deep)
    for line in wrong[:MAX_LINES]:
        yield Answer(FAILED, line)
    if len(wrong) > MAX_LINES:
        yield Answer(FAILED, f"and {len(wrong) - MAX_LINES} more")
    if not wrong:
        how = "every sample read" if patient.deep else "sizes and footers; --deep reads samples"
        yield Answer(
            OK, f"{store}: {manifest.count:,} samples in {len(manifest.shards)} files ({how})"
        )


def look_at_memory(patient: Patient) -> Iterator[Answer]:
    """What the run would take of the cluster's GPUs, or of this machine, and whether it fits."""
    assert patient.config is not None
    from sid_ray.planning.choose import choose_measured
    from sid_ray.recipes.known_networks import teacher_of

    config, told = patient.config, list[str]()
    machine = patients_machine(patient)
    if machine is None or (config.resources.use_gpu is True and not machine.gpu_bytes):
        yield Answer(SKIPPED, f"no GPU here to measure: sid-ray plan {config.recipe} counts")
        return
    description = patient.found.get("teacher") or teacher_of(config)
    choice = choose_measured(config, description, machine, told.append)
    yield from (Answer(WARNING, text) for text in told)
    yield Answer(OK, choice.line)


def patients_machine(patient: Patient) -> Machine | None:
    """The cluster as its nodes have answered, or this machine; None for a cluster that has not."""
    from sid_ray.planning.here import machine_here

    assert patient.config is not None
    if not joins_cluster():
        return machine_here(patient.config)
    nodes = tuple(
        Node(node.cpus, node.gpus, int(node.gpu_memory_gib * GIB))
        for node in patient.found.get("nodes", ())
    )
    taken = evaluator_resources(patient.config)
    return Machine(nodes, fixed=False, taken=taken) if nodes else None


def check_disk(patient: Patient) -> Iterator[Answer]:
    """Space for the checkpoints: two on each node's disk, one more than are kept in storage."""
    assert patient.config is not None
    from sid_ray.planning.fit import Planner
    from sid_ray.recipes.known_networks import teacher_of

    config = patient.config
    description = patient.found.get("teacher") or teacher_of(config)
    size = Planner(description).checkpoint(config) / GIB
    places = {"local": (Path(config.output.local_folder or tempfile.gettempdir()), 2)}
    if is_path(patient.runs):
        places["storage"] = Path(patient.runs), config.output.keep_checkpoints + 1
    enough = True
    for name, (path, count) in places.items():
        while not path.exists():
            path = path.parent
        free, needed = shutil.disk_usage(path).free / GIB, count * size
        if free < needed + SPARE_GIB:
            enough = False
            field_name = "output.local_folder" if name == "local" else "output.folder"
            yield Answer(
                FAILED,
                f"{path} has {free:.1f} GiB free; {count} checkpoints of {size:.1f} GiB need "
                f"{needed:.1f} and {SPARE_GIB:g} spare: set {field_name} to another disk, or free "
                "some",
            )
    if enough:
        yield Answer(OK, f"checkpoints of {size:.2f} GiB: enough space on this machine")


def run_doctor(config: DistillConfig | None, runs: str, deep: bool) -> int:
    """Prints every finding; 0 when none failed, else 1."""
    console = Console(highlight=False, soft_wrap=True)
    failed = 0
    for name, finding in examine(Patient(config, runs, deep)):
        failed += finding.state == FAILED
        line = Text(f"{finding.state:8}", STYLES[finding.state])
        console.print(line + Text(f" {name:9} {finding.text}"))
    console.print(f"{failed} found wrong" if failed else "nothing found wrong")
    return int(failed > 0)


def doctor(config: DistillConfig, options: DoctorOptions, flags: Sequence[str] = ()) -> int:
    """Looks at a recipe's run, or without one at this machine. Raises UserError."""
    if options.device:
        from sid_ray.commands.device.verify import verify_device

        if flags:
            raise UserError(f"--device looks at this machine alone and takes no {flags[0]}")
        return verify_device(options.cpu, options.report, options.only)
    set_endpoint(config.storage.endpoint_url, config.storage.region)
    return run_doctor(
        config if options.recipe else None, runs_folder(config.output.folder), options.deep
    )

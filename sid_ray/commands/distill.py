"""One distillation from start to end, as a person sees it: check, train, report, what to do
next.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from sid_ray.checkpoint.find import find_generator, newest_listed
from sid_ray.checkpoint.warm_start import (
    check_donor_adapters,
    check_donor_network,
    check_newest,
)
from sid_ray.commands.checks import DISTILL, Patient, enforce
from sid_ray.commands.result import Result
from sid_ray.config.auto import AUTO
from sid_ray.config.distill_config import DistillConfig, flags, located, replace
from sid_ray.console import Display, duration, quiet_output
from sid_ray.data.source import data_fingerprint
from sid_ray.denoisers.dropout import MASKS
from sid_ray.denoisers.registry import family_of
from sid_ray.errors import RunFailedError, UserError
from sid_ray.evaluation.records import merge_results
from sid_ray.metrics.names import plain_scores, shown_score
from sid_ray.ray_setup.environment import stop_like_ctrl_c
from sid_ray.recipes.registry import RECIPES, recipe
from sid_ray.run_folder import (
    EVALUATIONS,
    GRID,
    LOG,
    SUMMARY,
    RunFolder,
    RunRecord,
    check_same_data,
    check_same_lora,
    check_same_masks,
    check_same_run,
    check_same_text_encoder,
    is_job_copy,
    note_record,
    only_driver,
    read_record,
    runs_folder,
    told_to_user,
    tracking_uri,
)
from sid_ray.storage.errors import StoreError
from sid_ray.storage.lease import LeaseLostError
from sid_ray.storage.s3 import set_endpoint
from sid_ray.storage.store import Store
from sid_ray.tracking.copies import settle_record
from sid_ray.tracking.mlflow_run import shown_uri
from sid_ray.training.assemble import Start, bare_source, drops_out
from sid_ray.weights.components import fingerprint_of_text as components_fingerprint
from sid_ray.weights.teacher import lora_fingerprint

if TYPE_CHECKING:
    from sid_ray.actors.trainer import TrainingOutcome
    from sid_ray.evaluation.final_report import FinalReport
    from sid_ray.tracking.sender import Model

STOPPED, FAILED, GAVE_UP, LOST = 130, 1, 3, 4
MEASURED = ("teacher", "teacher_one_step", "generator")  # the rows of a report


def run_distillation(config: DistillConfig, began_from: str = "") -> int:
    """``distil`` as a command. Returns the exit code.

    Raises UserError before anything starts when the run cannot be this one.
    """
    try:
        distil(config, began_from)
    except RunFailedError as error:  # told already
        return error.exit_code
    except KeyboardInterrupt:
        return STOPPED
    return 0


def distil(config: DistillConfig, began_from: str = "") -> Result:
    """Distils, or goes on with a run of the same name; tells a person on the standard output.

    For a process that does nothing else: its signals, its environment and its file descriptors are
    the run's (``sid_ray.distill`` is for others).

    Args:
        began_from: address of another run's checkpoint, whose state this one begins with.

    Raises UserError before anything starts when the run cannot be this one; afterwards
    RunFailedError and KeyboardInterrupt, which have been told then.
    """
    began = time.monotonic()
    stop_like_ctrl_c()
    set_endpoint(config.storage.endpoint_url, config.storage.region)
    config = replace(located(config), output__folder=runs_folder(config.output.folder))
    start = enforce(Patient(config, config.output.folder), DISTILL)["start"]
    run = RunFolder.of(config)
    with only_driver(run, config.storage.lease_s, lease_is_dead) as run:
        with told_to_user():
            fingerprint = data_fingerprint(config.data)
            fresh = RunRecord("", began_from=began_from, masks=MASKS)
            record = check_same_run(run.store, config) or fresh
            check_same_masks(record, MASKS, drops_out(config, start.description))
            check_same_data(record, fingerprint)
            text_encoder = components_fingerprint(start.components, start.description.family)
            check_same_text_encoder(record, text_encoder)
            lora = lora_fingerprint(config)
            check_same_lora(record, lora)
            check_newest(run.store, config.teacher.source, start.description)
            if began_from:
                donor, _, name = began_from.rpartition("/")
                check_donor_network(Store.at(donor), name, config.teacher.source, start.description)
                check_donor_adapters(began_from, config)
            record, copied = settle_record(record, run, config)
        record = dataclasses.replace(
            record, config=config.stored(), data=fingerprint, text_encoder=text_encoder, lora=lora
        )
        log = run.local / LOG
        with quiet_output(log) as console:
            console.print(f"{config.recipe}: {config.objective.name}; full log: {shown_path(log)}")
            if copied:
                console.print(copied, markup=False)
            try:
                return distil_with(config, start, run, record, console, began)
            except LeaseLostError as error:
                console.print(f"stopped: {error}", markup=False)
                raise RunFailedError(f"stopped: {error}", LOST, str(run.store)) from error


def lease_is_dead(lease: Mapping[str, Any]) -> bool:
    """Whether Ray knows that the driver which has a lease is dead."""
    from sid_ray.actors import liveness

    return liveness.driver_is_gone(lease)


def check_evaluation(config: DistillConfig, start: Start) -> None:
    """Raises UserError where what scores images, or what they are compared with, is missing."""
    evaluation = config.evaluation
    if not (evaluation.every or evaluation.final_report):
        return
    from sid_ray.evaluation.judge import Judge, codec_of

    codec = codec_of(start.description, evaluation.vae or start.components.vae)
    Judge(evaluation, bare_source(config, start.description), codec).check()


def distil_with(
    config: DistillConfig,
    start: Start,
    run: RunFolder,
    record: RunRecord,
    console: Console,
    began: float,
) -> Result:
    """The run itself; its libraries' output goes to the log."""
    from sid_ray.actors import trainer

    with Display(console, config.training.images) as display:
        try:
            outcome = trainer.run_training(config, start, run, record, display)
        except KeyboardInterrupt:
            console.print(f"stopped; {state_of_stopped(run)}", markup=False)
            raise
        except (trainer.TrainingFailedError, StoreError) as error:
            left = f"{state_of_stopped(run)}; full log: {shown_path(run.local / LOG)}"
            console.print(f"failed: {error}", markup=False)
            console.print(left, markup=False)
            code = GAVE_UP if isinstance(error, trainer.GaveUpError) else FAILED
            raise RunFailedError(f"failed: {error}; {left}", code, str(run.store)) from error
        if outcome.tracking_trouble:
            console.print(f"warning: {outcome.tracking_trouble}", markup=False)
        asked, config = config, outcome.config
        report = measure(config, start.teacher, run, outcome, display)
    run.check_lease()
    show_table(console, report)
    total_s = time.monotonic() - began
    summary = write_summary(config, run, outcome, report, total_s)
    model = give_away(console, config, run, outcome, report)
    upload(console, run)
    tracker_run_id = track_report(console, config, run, report, outcome.images_seen, model)
    console.print(
        f"{outcome.images_seen:,} images seen, {outcome.trained_images:,} of them now in "
        f"{duration(outcome.train_seconds)}; {duration(total_s)} in all"
    )
    show_next(console, asked, start, run, report, model)
    return Result(
        folder=str(run.store),
        images_seen=outcome.images_seen,
        summary=summary,
        scores=plain_scores(report.rows[-1].scores) if report.rows else {},
        weights=str(model.folder) if model else "",
        best_images_seen=model.images_seen if model else outcome.images_seen,
        best_scores=dict(model.scores or {}) if model else {},
        mlflow_run_id=tracker_run_id,
        mlflow_uri=shown_uri(tracking_uri(config)),
    )


def shown_path(path: Path) -> str:
    """A path as a person at this folder would write it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def shown_run(run: RunFolder) -> str:
    """A run's address as a person at this folder would write it."""
    return shown_path(run.store.folder) if run.store.is_local else run.store.url


def state_of_stopped(run: RunFolder) -> str:
    """What is left of a run that stopped."""
    try:
        there = newest_listed(run.store)
    except StoreError as error:
        return f"what was checkpointed is in {run.store}, which cannot be read now ({error})"
    if there is None:
        return "no checkpoint was written yet: the same command starts from the teacher"
    seen = there[1].images_seen
    return f"checkpoint at {seen:,} images kept: the same command goes on from there"


def measure(
    config: DistillConfig, teacher: Path, run: RunFolder, outcome: TrainingOutcome, display: Display
) -> FinalReport:
    """Teacher and generator side by side, and the contact sheet; nothing where switched off."""
    import torch

    from sid_ray.actors.reserve import reserved_device
    from sid_ray.evaluation.final_report import FinalReport, final_report

    if not config.evaluation.final_report:
        return FinalReport()

    try:
        generator = find_generator(outcome.checkpoint.url)
    except UserError as error:  # its storage is away: the training is done all the same
        display.update("", {}, [f"warning: no final report: {error}"])
        return FinalReport()
    # Two threads on two cores were no faster here than one, and far slower beside other work.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    with reserved_device(lambda text: display.update("", {}, [f"final report: {text}"])) as device:
        return final_report(
            config,
            teacher,
            generator,
            run.local / GRID,
            progress=lambda text: display.update(text, {}, []),
            device=device,
        )


def show_table(console: Console, report: FinalReport) -> None:
    if not report.rows:
        return
    names = list(plain_scores(report.rows[0].scores))
    table = Table(title=f"in {report.protocol['feature_space']}", title_style="")
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name.partition("-")[0], justify="right")
    table.add_column("ms per image", justify="right")
    for row in report.rows:
        numbers = [shown_score(name, row.scores[name]) for name in names]
        table.add_row(row.name, *numbers, f"{row.milliseconds:.2f}")
    console.print(table)


def write_summary(
    config: DistillConfig,
    run: RunFolder,
    outcome: TrainingOutcome,
    report: FinalReport,
    total_s: float,
) -> dict[str, Any]:
    """summary.json: the end of the run for programs; what it holds."""
    rows = report.rows
    firsts: list[float | None] = [round(row.scores[report.primary], 4) for row in rows]
    summary = {
        "score": report.primary or None,
        **dict(zip(MEASURED, firsts or [None] * 3, strict=True)),
        "scores": {row.name: dict(row.scores) for row in rows},
        "protocol": dict(report.protocol),
        "images_seen": outcome.images_seen,
        "trained_images": outcome.trained_images,
        "train_seconds": round(outcome.train_seconds, 1),
        "startup_seconds": round(outcome.startup_seconds, 1),
        "total_seconds": round(total_s, 1),
        "num_workers": taken(config, "num_workers"),
        "interruptions": [dataclasses.asdict(item) for item in outcome.interruptions],
        "zero_stage": taken(config, "zero_stage"),
        "checkpoint": outcome.checkpoint.name,  # in the run's folder, wherever that lies
        "grid": GRID if rows else None,
        "milliseconds_per_image": {row.name: round(row.milliseconds, 3) for row in rows},
    }
    (run.local / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def taken(config: DistillConfig, name: str) -> Any:
    """A field of the resources; None where it is auto and nothing was trained: none was chosen."""
    value = getattr(config.resources, name)
    return None if value == AUTO else value


def give_away(
    console: Console,
    config: DistillConfig,
    run: RunFolder,
    outcome: TrainingOutcome,
    report: FinalReport,
) -> Model | None:
    """The run's model folder with its card; storage or a disk that fails costs a warning."""
    from sid_ray.commands.release import release

    scores = plain_scores(report.rows[-1].scores) if report.rows else {}
    try:
        return release(config, run, outcome.checkpoint.url, outcome.images_seen, scores)
    except (OSError, UserError) as error:
        console.print(f"warning: no model folder in {shown_path(run.local)}: {error}", markup=False)
        return None


def upload(console: Console, run: RunFolder) -> None:
    """Brings the report to the run's storage; storage that fails costs a warning."""
    try:
        run.upload(SUMMARY, GRID)
        if not run.store.is_local:
            merge_results(Store.at(run.local), run.store)
    except StoreError as error:
        console.print(
            f"warning: the report is not in {run.store} but in {shown_path(run.local)}: {error}",
            markup=False,
        )


def track_report(
    console: Console,
    config: DistillConfig,
    run: RunFolder,
    report: FinalReport,
    images_seen: int,
    model: Model | None,
) -> str:
    """Puts the final report, the model, and what was left of the run, into its MLflow record.

    Returns the id of its MLflow run, empty where it has none yet.

    A store that fails costs a warning; the next start of the run sends what is left.
    """
    from sid_ray.actors.beside import tracking_target
    from sid_ray.tracking.sender import send_report

    metrics = {
        f"final/{who}_{name}": value
        for who, row in zip(MEASURED, report.rows, strict=False)
        for name, value in plain_scores(row.scores).items()
    }
    names = (GRID, SUMMARY, EVALUATIONS) if report.rows else (EVALUATIONS,)
    files = [run.local / name for name in names if (run.local / name).is_file()]
    known = ""
    try:
        record = read_record(run.store)
        if record is None:
            return ""
        known = record.tracker_run_id or ""
        target = tracking_target(config, record)
        run_id, left = send_report(
            target,
            run.local,
            metrics,
            files,
            images_seen,
            model=model if config.output.log_model else None,
        )
        if run_id and run_id != known:
            known = run_id
            note_record(run, dataclasses.replace(record, tracker_run_id=run_id))
    except (OSError, UserError) as error:  # the report itself is on disk already
        left = str(error)
    if left:
        console.print(f"warning: the report is not in MLflow: {left}", markup=False)
    return known


def program(name: str) -> str:
    """How to call a command of this environment from the folder that the user is in."""
    beside = Path(sys.executable).parent / name
    on_path = shutil.which(name)
    if on_path and Path(on_path).resolve() == beside.resolve():
        return name
    return shlex.quote(shown_path(beside))


def mlflow_pages(uri: str) -> str:
    """How to see a tracking store's pages; without its password."""
    if uri.startswith("http"):
        return shown_uri(uri)
    return f"{program('mlflow')} ui --backend-store-uri {shlex.quote(shown_uri(uri))}"


def show_next(
    console: Console,
    config: DistillConfig,
    start: Start,
    run: RunFolder,
    report: FinalReport,
    model: Model | None,
) -> None:
    """The commands to go on with, ready to paste."""

    us, source = program("sid-ray"), shlex.quote(shown_run(run))
    server, variable = config.storage.endpoint_url, run.store.scheme.endpoint
    on_server = f"{variable}={shlex.quote(server)} " if server and variable else ""
    elsewhere = config.output.folder != str(Path("runs").absolute())
    where = f" --output.folder {shlex.quote(config.output.folder)}" if elsewhere else ""
    images = 2 * config.training.images
    named = config.recipe in RECIPES  # else it is a caller's own, and no command has it
    base = recipe(config.recipe) if named else config
    changed = "".join(f" {shlex.quote(flag)}" for flag in flags(base, config))
    sheet = {"contact sheet": shown_path(run.local / GRID)} if report.rows else {}
    if model is not None:
        scores = model.scores or {}
        first = next(iter(scores), "")
        score = f"{first} {shown_score(first, scores[first])}, " if first else ""
        sheet["best weights"] = f"{shown_path(model.folder)} ({score}{model.images_seen:,} images)"
    reads_text = family_of(start.description.family).reads_text
    text = ' --prompt "red heart | cat face"' if reads_text else ""
    again = f"{us} distill {config.recipe} --run {config.run_name}{where}{changed}"
    if not named:
        again = "call sid_ray.distill again, with"
    elif is_job_copy(Path.cwd()):
        again = "submit the job again, with"
    commands = sheet | {
        "generate": f"{on_server}{us} generate {source} --seeds 0-63{text} --out samples",
        "resume": f"{again} --images {images}",
        "MLflow UI": mlflow_pages(tracking_uri(config)),
    }
    for what, command in commands.items():
        console.print(f"{what:14} {command}", markup=False, soft_wrap=True)

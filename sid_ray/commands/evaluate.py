"""``sid-ray evaluate``: scores of a run, a checkpoint, a teacher or a folder of images.

Images are made and looked at in blocks of 256 seeds, here or by a pool of actors; each finished
block is on disk, so a killed command goes on. The scores are taken from the blocks in the order of
their seeds: the same bits for any number of actors, and for work that was interrupted.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import get_args

import torch
from rich.console import Console
from torch import nn

from sid_ray.config.distill_config import DistillConfig, asked_metrics, replace
from sid_ray.config.sections import DATA_SETS, DataConfig, EvaluationConfig, TeacherConfig
from sid_ray.data.command import Meter
from sid_ray.data.picture_sets import holds_pictures, open_pictures
from sid_ray.data.progress import StoppedError
from sid_ray.device.choice import Device, device_for, on_gpu
from sid_ray.device.found import gpus_here
from sid_ray.errors import UserError, nearest
from sid_ray.evaluation.blocks import Bench, Job, Kept, kept_folder
from sid_ray.evaluation.judge import Look, seed_blocks
from sid_ray.evaluation.options import FEWEST, PUBLISHED_IMAGES, EvaluateOptions, with_own_flags
from sid_ray.evaluation.picture_blocks import PictureBench, PictureJob
from sid_ray.evaluation.real_images import is_statistics
from sid_ray.evaluation.result import result_of, table_of_scores, tell_run, write_result
from sid_ray.evaluation.subject import Subject, find_subject, schedule_config
from sid_ray.metrics.extractors import NAMES
from sid_ray.metrics.spec import metric_spec
from sid_ray.ray_setup.environment import joins_cluster
from sid_ray.ray_setup.start import check_ray
from sid_ray.storage.errors import StoreError
from sid_ray.storage.places import check_folder, expanded
from sid_ray.storage.schemes import is_path
from sid_ray.weights.folder import load_model

SMALL = 2  # blocks that are not worth the start of other processes
SPACES = {(1, 8, 8): "digits-cnn", (3, 16, 16): "emoji-cnn"}
GOES_ON = "what is finished is kept, the same command goes on"


def run_evaluation(options: EvaluateOptions) -> int:
    """Evaluates, prints the table, writes the JSON. Returns the exit code.

    Raises UserError: before images are made for wrong input, later for storage or Ray that fail.
    """
    options.check()
    options = dataclasses.replace(options, use_gpu=wants_gpu(options))
    console = Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 200  # a file has no edge at which numbers would be cut
    try:
        evaluate(options, console)
    except UserError as error:
        raise UserError(with_own_flags(str(error))) from None
    except (StoreError, StoppedError) as error:
        raise UserError(f"{error}; {GOES_ON}") from None
    except torch.OutOfMemoryError:
        raise UserError(
            f"not enough GPU memory for {options.batch_size} images at once: give a smaller "
            f"--batch-size, or --device cpu; {GOES_ON}"
        ) from None
    except BrokenPipeError:  # nobody reads the output
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        how = "; free some space, or set SID_RAY_CACHE to another disk" if full else ""
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{where}{error.strerror or error}{how}; {GOES_ON}") from None
    except KeyboardInterrupt:
        console.print(f"interrupted: {GOES_ON}")
        raise
    return 0


def evaluate(options: EvaluateOptions, console: Console) -> None:
    """run_evaluation with all of its errors."""
    began, device = time.monotonic(), "cuda" if options.use_gpu else "cpu"
    job: Job | PictureJob
    if holds_pictures(options.source):
        job, network = pictures_job_of(options, console), None
    else:
        job, network = job_and_network(options)
    if not is_here(sum(len(list(seed_blocks(one))) for one in trials_of(options, job)), options):
        check_ray()
    with Meter(console, "evaluating", "images", "opening") as meter:
        bench = bench_of(job, network, own_device(options), console.print)
        bench.check()
        kept = Kept(kept_folder(bench.key(device)), bench.judge)
        check_folder(kept.folder, "the cache (SID_RAY_CACHE)")
        if options.fresh:
            kept.clear()
        trials = trials_of(options, job)
        began_making = time.monotonic()
        made = make(bench, network, kept, trials, options, meter)
        making_s = max(time.monotonic() - began_making, 1e-3)
        meter.say("taking the scores")
        scores = [scores_of_trial(bench, kept, trial) for trial in trials]
    seconds = time.monotonic() - began
    result = result_of(job, bench, trials, scores, device)
    result |= {"seconds": round(seconds, 1), "images_made": made}
    result["images_per_s"] = round(made / making_s, 1)
    write_result(options.out, result)
    console.print(table_of_scores(result))
    tell_run(result, console)
    console.print(
        f"{made:,} images {'looked at' if network is None else 'made'} in {seconds:.1f} s; result "
        f"in {options.out}; features kept in {kept.folder} ({kept.size / 1e6:,.1f} MB)"
    )


def bench_of(
    job: Job | PictureJob,
    network: nn.Module | None,
    device: torch.device,
    tell: Callable[[str], None],
) -> Bench | PictureBench:
    """What looks at images in this process. Raises UserError."""
    if isinstance(job, PictureJob):
        return PictureBench(job, device, tell)
    assert network is not None
    return Bench(job, network, device, tell)


# What is asked -----------------------------------------------------------------------------------


def job_and_network(options: EvaluateOptions) -> tuple[Job, nn.Module]:
    """Raises UserError for what cannot be opened, or was asked for pictures alone."""
    if options.resolution or options.prompts is not None:
        flag = "--resolution" if options.resolution else "--prompts"
        raise UserError(f"{flag} is for a folder of images; {options.source} holds none")
    subject = find_subject(options.source, options.base)
    subject = dataclasses.replace(subject, text_encoder=options.text_encoder)
    job = job_of(options, subject)
    network, description = load_model(subject.network, base=subject.base)
    described = subject.description
    if (description.family, description.network) != (described.family, described.network):
        raise UserError(f"{subject.source} changed while it was read; run the command again")
    return job, network


def pictures_job_of(options: EvaluateOptions, console: Console) -> PictureJob:
    """The protocol that was asked for, of pictures that are there. Raises UserError, StoreError."""
    options.check_for_pictures()
    chosen = EvaluationConfig(metrics=options.metrics or EvaluationConfig().metrics)
    names = asked_metrics(chosen.metrics)
    reads_prompts = any("prompts" in metric_spec(name).reads for name in names)
    check_feature_space(options.feature_space)
    with Meter(console, "reading", "images", "listing") as meter:
        pictures = open_pictures(
            options.source, options.num_images, options.resolution, reads_prompts,
            options.prompts, meter.tell,
        )  # fmt: skip
    if len(pictures) < FEWEST:
        raise UserError(
            f"{options.source} holds {len(pictures)} images; scores need at least {FEWEST}"
        )
    if left_out := pictures.notes.get("left_out"):
        console.print(f"left out: {', '.join(left_out)}, the grid of sid-ray generate")
    evaluation = dataclasses.replace(
        chosen,
        feature_space=options.feature_space or SPACES.get(pictures.shape, "lite0"),
        feature_weights=options.feature_weights,
        clip_weights=options.clip_weights,
        metric_weights=options.metric_weights,
        reference=options.reference,
        num_images=len(pictures),
    )
    return PictureJob(pictures, dataclasses.replace(DistillConfig(), evaluation=evaluation))


def check_feature_space(name: str) -> None:
    """Raises UserError for one that is unknown, before anything is read."""
    if name and name not in NAMES:
        known = ", ".join(NAMES)
        raise UserError(
            f"unknown feature extractor {name!r}; known: {known}.{nearest(name, NAMES)}"
        )


def job_of(options: EvaluateOptions, subject: Subject) -> Job:
    """The run's own protocol with what was asked otherwise. Raises UserError."""
    own = subject.config
    if own is None:
        own = DistillConfig(
            teacher=TeacherConfig(source=subject.source), schedule=schedule_config(subject)
        )
    config = dataclasses.replace(own, evaluation=protocol_of(options, subject))
    if options.data:
        config = dataclasses.replace(config, data=data_config(options))
    return Job(subject, config, even=subject.config is None and not options.data)


def protocol_of(options: EvaluateOptions, subject: Subject) -> EvaluationConfig:
    """Raises UserError for what this kind of network has no use for."""
    own = subject.config.evaluation if subject.config is not None else EvaluationConfig()
    known = subject.config is not None and bool(own.feature_space)
    default = own.feature_space if known else SPACES.get(subject.shape, "lite0")
    space = options.feature_space or default
    reference = options.reference or own.reference
    if not options.reference and space != own.feature_space and is_statistics(reference):
        reference = ""  # of the run's feature space, not of this one
    return dataclasses.replace(
        own,
        metrics=options.metrics or own.metrics,
        feature_space=space,
        feature_weights=options.feature_weights or own.feature_weights,
        clip_weights=options.clip_weights or own.clip_weights,
        metric_weights=options.metric_weights or own.metric_weights,
        reference=reference,
        vae=options.vae or own.vae,
        num_images=options.num_images or PUBLISHED_IMAGES,
        batch_size=options.batch_size,
        teacher_steps=options.steps or subject.family.teacher_steps,
        teacher_guidance=guidance_of(options, subject),
    )


def guidance_of(options: EvaluateOptions, subject: Subject) -> float:
    """A teacher's guidance scale, 1 for none: what is usual for its kind where nobody gives one.

    Raises UserError where there is nothing to guide.
    """
    if subject.is_generator and (options.steps or options.guidance is not None):
        raise UserError(
            f"{subject.source} is a generator with steps of its own: --steps and --guidance are "
            "for teachers"
        )
    if options.guidance is None:
        return subject.family.teacher_guidance(subject.description.network)
    if not subject.reads_text:
        raise UserError(
            f"--guidance {options.guidance:g}: {subject.source} reads no text to be guided by; "
            "guidance by a second network is not supported"
        )
    return options.guidance


def data_config(options: EvaluateOptions) -> DataConfig:
    """Raises UserError for an unknown data set."""
    known: tuple[str, ...] = get_args(DATA_SETS)
    if options.data not in known:
        hint = nearest(options.data, known)
        raise UserError(f"no data set {options.data!r}; known: {', '.join(known)}.{hint}")
    source = options.data_source
    if source and is_path(source):  # actors have another working directory
        source = str(expanded(source).absolute())
    return replace(DistillConfig(), data__name=options.data, data__source=source).data


def wants_gpu(options: EvaluateOptions) -> bool:
    """Whether each process gets a GPU. Raises UserError where one is asked for, and there can be
    none.
    """
    asked: Device = "cuda" if options.use_gpu else options.device
    return True if asked == "cuda" and joins_cluster() else on_gpu(asked)


def own_device(options: EvaluateOptions) -> torch.device:
    """Of this process. A cluster's GPUs are those of the actors, which Ray gives them."""
    return device_for("auto" if options.use_gpu and not joins_cluster() else "cpu")


def is_here(count: int, options: EvaluateOptions) -> bool:
    """Whether so many blocks are made by this process: they are few, or there is no other."""
    gpus = len(gpus_here()) if options.use_gpu else 0
    if options.use_gpu and (not gpus or joins_cluster()):
        return False
    if count <= SMALL or joins_cluster():
        return count <= SMALL
    found = gpus if options.use_gpu else os.cpu_count()
    return (options.actors or found or 1) == 1


def trials_of(options: EvaluateOptions, job: Job | PictureJob) -> list[range]:
    """The seeds of each trial; of pictures that are there, their places."""
    count, first = job.config.evaluation.num_images, options.first_seed
    return [range(first + k * count, first + (k + 1) * count) for k in range(options.trials)]


# Work --------------------------------------------------------------------------------------------


def make(
    bench: Bench | PictureBench,
    network: nn.Module | None,
    kept: Kept,
    trials: Sequence[range],
    options: EvaluateOptions,
    meter: Meter,
) -> int:
    """Makes every block that is not there yet, and keeps it. Returns the number of images made."""
    todo = [seeds for trial in trials for seeds in seed_blocks(trial) if kept.read(seeds) is None]
    total, left = sum(map(len, trials)), sum(map(len, todo))
    done = total - left
    meter.tell(done, total)
    for seeds, look in looks_found_by(bench, network, todo, options):
        kept.write(seeds, look)
        done += len(seeds)
        meter.tell(done, total)
    return left


def looks_found_by(
    bench: Bench | PictureBench,
    network: nn.Module | None,
    todo: Sequence[range],
    options: EvaluateOptions,
) -> Iterator[tuple[range, Look]]:
    """Blocks with their seeds, in the order they are finished: by this process or a pool."""
    if is_here(len(todo), options):
        yield from ((seeds, bench.look(seeds)) for seeds in todo)
        return
    from sid_ray.actors.pool import looks_on_ray

    key = bench.key("cuda" if options.use_gpu else "cpu")
    yield from looks_on_ray(bench.job, network, todo, options.actors, options.use_gpu, key)


def scores_of_trial(bench: Bench | PictureBench, kept: Kept, trial: range) -> dict[str, float]:
    """Scores of a trial, of its blocks in the order of their seeds. Raises UserError."""

    def looks() -> Iterator[Look]:
        for seeds in seed_blocks(trial):
            look = kept.read(seeds)
            if look is None:
                raise UserError(f"{kept.path(seeds)} was changed meanwhile; {GOES_ON}")
            yield look

    return bench.judge.scores(looks())

"""`sid-ray gallery`: a run's pictures on one page that needs nothing beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Iterator

import torch
from PIL import Image, UnidentifiedImageError

from sid_ray.checkpoint.find import checkpoints, manifest_of
from sid_ray.checkpoint.manifest import DamagedCheckpointError
from sid_ray.commands.arguments import typed_prompts
from sid_ray.commands.compare import Compared, open_run
from sid_ray.commands.gallery_options import GalleryOptions
from sid_ray.commands.gallery_page import Frame, Gallery, gallery_page
from sid_ray.commands.held_device import held_device
from sid_ray.config.distill_config import DistillConfig, asked_metrics
from sid_ray.config.sections import EvaluationConfig
from sid_ray.errors import UserError
from sid_ray.evaluation.gallery import OTHER_SPACE, Asked, Studio, by_image
from sid_ray.evaluation.pictures import pixel_scale, tile
from sid_ray.evaluation.records import results_in
from sid_ray.metrics.names import EVAL, plain_scores
from sid_ray.run_folder import EVALUATIONS, PICTURES, SAMPLES
from sid_ray.storage.cache import folder_of
from sid_ray.storage.durable import moved_into_place
from sid_ray.storage.errors import StoreError
from sid_ray.storage.store import Store
from sid_ray.tracking.history import History, Point

SHEET = re.compile(rf"{SAMPLES}-(\d+)\.png")
Tell = Callable[[str], None]


def gallery(options: GalleryOptions) -> int:
    """Writes the page. Returns the exit code. Raises UserError in one line."""
    run, _, config = open_run(options.run)
    chosen = chosen_evaluation(options, config)  # a wrong name is told before anything is loaded
    prompts = typed_prompts(options.prompt)
    with held_device(options.device, print) as device:
        asked = Asked(chosen, options.images, prompts)
        try:
            studio = Studio(options.run, asked, device, print)
            found = made_gallery(run, config, studio, options.frames, print)
        except StoreError as error:
            raise UserError(str(error)) from None
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with moved_into_place(options.out) as temporary:
        temporary.write_text(gallery_page(found), encoding="utf-8")
    size = options.out.stat().st_size / 1e6
    print(f"{run.name}: {len(found.frames)} sheets in {options.out}, {size:.1f} MB")
    return 0


def chosen_evaluation(options: GalleryOptions, config: DistillConfig) -> EvaluationConfig:
    """The run's own protocol, with metrics that score single images and what was asked otherwise.

    Raises UserError for a metric that scores none, and where no feature space is known.
    """
    own = config.evaluation
    names = asked_metrics(options.metrics or own.metrics)
    scored = by_image(names)
    if options.metrics and len(scored) < len(names):
        wrong = next(name for name in names if name not in scored)
        raise UserError(
            f"--metrics {wrong}: it scores sets of images, no single ones; leave it out"
        )
    space = options.feature_space or own.feature_space
    if not space:
        raise UserError(f"this run has no evaluation.feature_space: {OTHER_SPACE}")
    same = space == own.feature_space
    return dataclasses.replace(
        own,
        metrics=",".join(scored) or EvaluationConfig().metrics,  # there must be one
        feature_space=space,
        feature_weights=own.feature_weights if same else "",
        clip_weights=options.clip_weights or own.clip_weights,
        metric_weights=options.metric_weights or own.metric_weights,
        reference=options.reference or own.reference,
    )


def made_gallery(
    run: Store, config: DistillConfig, studio: Studio, most: int, tell: Tell
) -> Gallery:
    """All that the page shows. Raises UserError, StoreError."""
    frames = list(frames_of_run(run, studio, most, tell))
    tell("making grids")
    images, words, look = studio.looked_at()
    return Gallery(
        run=Compared(run.name, run.url, config, scores_of(run)),
        images_seen=studio.images_seen,
        frames=frames,
        by=studio.by,
        grid=studio.grid(),
        copies=studio.copies(images, words, look),
        rankings=studio.rankings(images, words, look),
    )


def scores_of(run: Store) -> History:
    """The scores of evaluations.jsonl, in the order of images seen; the first of equals counts."""
    try:
        results = results_in(run.read(EVALUATIONS))
    except FileNotFoundError:
        return {}
    found: dict[str, dict[int, float]] = {}
    for result in results:
        seen, scores = result.get("images_seen"), result.get("scores")
        if isinstance(seen, int) and isinstance(scores, dict):
            for name, value in plain_scores(scores).items():
                found.setdefault(f"{EVAL}{name}", {}).setdefault(seen, float(value))
    return {
        name: [Point(seen, value, 0.0) for seen, value in sorted(points.items())]
        for name, points in found.items()
    }


# The same seeds over images seen ----------------------------------------------------------------


def frames_of_run(run: Store, studio: Studio, most: int, tell: Tell) -> Iterator[Frame]:
    """The sheets that the run has left, and of kept checkpoints between them those that are made
    now: up to ``most``, evenly apart, the first and the last among them.
    """
    sheets = kept_sheets(run)
    kept = {seen: name for seen, name in kept_checkpoints(run, tell) if seen not in sheets}
    places = sorted(sheets.keys() | kept.keys())
    for seen in evenly(places, most):
        if seen in sheets:
            yield Frame(seen, sheets[seen])
            continue
        tell(f"making the sheet of {seen:,} images seen")
        try:
            columns, images = studio.sheet(f"{run.url}/{kept[seen]}")
        except UserError as error:
            tell(f"left out: {error}")
            continue
        yield Frame(seen, tile(images, columns, pixel_scale(images.shape[-1])))


def kept_sheets(run: Store) -> dict[int, Image.Image]:
    """Contact sheets on this machine's disk, by images seen. What is no whole picture is not."""
    home = run.folder if run.is_local else folder_of(run, "runs")
    found: dict[int, Image.Image] = {}
    for path in sorted((home / PICTURES).glob("*.png")):
        if match := SHEET.fullmatch(path.name):
            with contextlib.suppress(OSError, UnidentifiedImageError, SyntaxError, ValueError):
                picture = Image.open(io.BytesIO(path.read_bytes()))
                picture.load()
                found[int(match[1])] = picture
    return found


def kept_checkpoints(run: Store, tell: Tell) -> Iterator[tuple[int, str]]:
    """(images seen, name) of the checkpoints that count; of damaged ones a word."""
    for name in checkpoints(run):
        try:
            yield manifest_of(run, name).images_seen, name
        except DamagedCheckpointError as error:
            tell(f"left out: {error}")


def evenly(values: list[int], most: int) -> list[int]:
    """Up to ``most`` of some ascending values, evenly apart by their place."""
    if len(values) <= most:
        return values
    places = torch.linspace(0, len(values) - 1, most).round().long().tolist()
    return [values[place] for place in places] if most > 1 else values[-1:]

"""From a source to a prepared set: plan, do what is not done yet, write the manifest last."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

from sid_ray.data.ingest import open_samples
from sid_ray.data.layout import Unit, Work, plan_work
from sid_ray.data.left_out import account_lines
from sid_ray.data.manifest import MANIFEST, DataManifest, TextEncoder, read_manifest
from sid_ray.data.options import OFFLINE, PrepareOptions
from sid_ray.data.progress import (
    PLAN,
    PROGRESS,
    FileReport,
    finished,
    is_own,
    plan_note,
    remove_leftovers,
    remove_own,
)
from sid_ray.data.samples import Samples
from sid_ray.data.write import build_patiently
from sid_ray.errors import UserError
from sid_ray.ray_setup.start import check_ray
from sid_ray.storage.places import check_folder
from sid_ray.storage.s3 import set_endpoint
from sid_ray.storage.shared import NotSharedError
from sid_ray.storage.store import Store

SHORT_S = 30.0  # work that is done here sooner than Ray starts and does it
RECORDED = (
    "resolution", "crop", "grey", "rgb", "encode", "convention", "encode_text", "split",
    "labels", "captions", "max_images", "shuffle", "seed", "row_group_mib",
)  # fmt: skip
Tell = Callable[[int, int], None]  # samples done, samples in all
Say = Callable[[str], None]


@dataclass(frozen=True)
class PreparationOutcome:
    """``resumed`` samples were there from an earlier try; all of them: nothing was done."""

    manifest: DataManifest
    resumed: int


def prepare_data(
    options: PrepareOptions,
    tell: Tell = lambda done, total: None,
    say: Say = lambda line: None,
) -> PreparationOutcome:
    """Prepares a set. After an interruption the same call goes on.

    ``say`` hears, before the work, how the source was understood and what of it is not used.

    Raises UserError in one line for wrong input, and then leaves nothing half-written; StoreError
    or StoppedError where storage or Ray fails, and then finished files stay.
    """
    options.check()
    set_endpoint(options.endpoint_url, options.region)
    destination = Store.at(options.destination)
    check_apart(options.source, destination)
    if destination.is_local:
        check_folder(destination.folder, "DST")
    samples = open_samples(options)
    for line in account_lines(samples.account, samples.class_names):
        say(line)
    work, units = plan_work(samples, options, destination)
    there = standing(work, options.force)
    if there is not None:
        destination.remove_tree(PROGRESS)
        return PreparationOutcome(there, there.count)
    if workers_for_units(work, samples.count, options):
        check_ray()
    is_new = not exists(destination)
    destination.create()
    destination.write(PLAN, plan_note(work))
    resumed = 0
    try:
        reports = finished(work, units)
        resumed = sum(sum(report.row_groups) for report in reports.values())
        tell(resumed, samples.count)
        done = resumed
        for report in run_units(units, reports, work, options):
            reports[report.index] = report
            done += sum(report.row_groups)
            tell(done, samples.count)
    except UserError as error:
        if isinstance(error, NotSharedError) and resumed:
            raise  # files of an earlier try are right
        remove_own(destination)
        if is_new and destination.is_local:
            remove_empty(destination)
        raise
    remove_leftovers(destination)
    manifest = manifest_of_set(samples, work, [reports[unit.index] for unit in units], options)
    destination.write(MANIFEST, manifest.to_json())
    destination.remove_tree(PROGRESS)
    return PreparationOutcome(manifest, resumed)


def run_units(
    units: list[Unit], reports: dict[int, FileReport], work: Work, options: PrepareOptions
) -> Iterator[FileReport]:
    """Does what has no report yet, here or on Ray."""
    rest = [unit for unit in units if unit.index not in reports]
    workers = workers_for_units(work, sum(unit.samples.count for unit in rest), options)
    if not rest:
        return
    if workers == 0:
        for unit in rest:
            yield build_patiently(unit, work)
        return
    from sid_ray.data.pipeline import run_on_ray

    yield from run_on_ray(rest, work, workers, options.gpus)


def workers_for_units(work: Work, count: int, options: PrepareOptions) -> int:
    """--workers, or what suits the work: 0 for this process."""
    if options.workers >= 0:
        return options.workers
    encoded = work.vae is not None or work.text is not None
    if count * work.sample_s < SHORT_S and not encoded:
        return 0
    return max(1, options.gpus or os.cpu_count() or 1)


def check_apart(source: str, destination: Store) -> None:
    """Raises UserError where the set would lie in its source."""
    if not source or source.partition(":")[0] in OFFLINE:
        return
    from_, to = Store.at(source), destination
    if from_.is_local and to.is_local:
        inside = to.folder.resolve().is_relative_to(from_.folder.resolve())
    else:
        inside = f"{to.url}/".startswith(f"{from_.url}/")
    if inside:
        raise UserError(f"{destination} lies in the source {source}: choose another destination")


def exists(destination: Store) -> bool:
    return destination.is_local and destination.folder.exists()


def remove_empty(destination: Store) -> None:
    if not any(destination.folder.iterdir()):
        destination.folder.rmdir()


def standing(work: Work, force: bool) -> DataManifest | None:
    """The set where it is whole already; None where work is to be done, with room made for it.

    Raises UserError where something else is in the way.
    """
    destination = work.destination
    if destination.is_local and destination.folder.is_file():
        raise UserError(f"{destination} is a file; a folder is expected")
    files = destination.files()
    others = [name for name in sorted(files) if not is_own(name)]
    if others:
        raise UserError(
            f"{destination} holds other files ({others[0]:.100}): choose an empty destination"
        )
    if not files:
        return None
    if MANIFEST in files:
        if force:
            remove_own(destination)
            return None
        found = read_manifest(destination)
        if found.source.get("plan") == work.plan:
            if all(files.get(shard.name) == shard.size for shard in found.shards):
                return found
            raise UserError(
                f"{destination} is prepared, but files of it are missing or cut: --force makes it "
                "again"
            )
        raise UserError(
            f"{destination} holds a set from another source or with other options: choose another "
            "destination, or give --force to replace it"
        )
    if PLAN in files and destination.read_text(PLAN) == plan_note(work):
        return None
    if not force:
        raise UserError(
            f"{destination} holds a half-prepared set from another source or with other options: "
            "give --force to replace it"
        )
    remove_own(destination)
    return None


def manifest_of_set(
    samples: Samples, work: Work, reports: list[FileReport], options: PrepareOptions
) -> DataManifest:
    mean, std = statistics(work, reports)
    counts = [0] * samples.label_dim
    for label in samples.labels or ():
        counts[label] += 1
    asked = asdict(options)
    default = asdict(PrepareOptions("", ""))
    source: dict[str, Any] = {"path": options.source, "samples": samples.count, **samples.notes}
    source |= samples.account
    source["options"] = {name: asked[name] for name in RECORDED if asked[name] != default[name]}
    if work.vae is not None:
        source |= {"vae_sha256": work.vae.sha256, "convention": work.vae.convention}
    return DataManifest(
        kind=work.kind,
        count=samples.count,
        shape=work.shape,
        columns=work.columns,
        shards=tuple(report.shard for report in reports),
        label_dim=samples.label_dim,
        class_counts=tuple(counts),
        class_names=samples.class_names,
        mean=mean,
        std=std,
        text=TextEncoder(work.text.sha256, work.text.shape) if work.text else None,
        source=source | {"plan": work.plan},
    )


def statistics(
    work: Work, reports: list[FileReport]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std a channel: of pixels in [-1, 1], or of latents' means."""
    values = sum(report.values for report in reports)
    if not values:
        return (), ()
    means, stds = [], []
    for channel in range(work.shape[0]):
        total = sum(report.sums[channel] for report in reports)
        squares = sum(report.squares[channel] for report in reports)
        # In this order the numerator is exact where sums are whole numbers.
        variance = max(values * squares - total * total, 0) / values**2
        scale, shift = (127.5, 1.0) if work.kind == "images" else (1.0, 0.0)
        means.append(total / values / scale - shift)
        stds.append(sqrt(variance) / scale)
    return tuple(means), tuple(stds)

"""From an address to its samples: what kind of source it is, and what is in it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from sid_ray.data.annotations import read_annotations
from sid_ray.data.archives import ZipReader, list_zip
from sid_ray.data.folders import FolderReader, folder_samples, labels_only
from sid_ray.data.offline import offline_samples
from sid_ray.data.options import MAX_LIST_BYTES, MIB, OFFLINE, PrepareOptions
from sid_ray.data.prompts import prompts_of
from sid_ray.data.samples import Samples
from sid_ray.errors import UserError, nearest
from sid_ray.store import Store

RUN = 16  # samples that stay together in a large source
MANY = 1024  # runs, at least, before that
KNOWN = ".zip, .json, .txt, .csv, .parquet, a folder, " + ", ".join(OFFLINE)


def open_samples(options: PrepareOptions) -> Samples:
    """The samples of a source, fewer where --max-images says so.

    Raises UserError in one line for a source that is missing, damaged or empty; StoreError.
    """
    samples = all_samples(options)
    if options.kind not in ("auto", samples.kind):
        raise UserError(f"--kind {options.kind}: {options.source} holds {samples.kind}")
    if samples.count < 1:
        raise UserError(f"{options.source} is empty")
    if 0 < options.max_images < samples.count:
        drawn = random.Random(options.seed).sample(range(samples.count), options.max_images)
        samples = samples.take(sorted(drawn))
    if not options.shuffle or samples.kind == "labels":  # of labels only the histogram is read
        return samples
    return samples.take(mixed(samples.count, options.seed))


def mixed(count: int, seed: int) -> list[int]:
    """A permutation of samples that keeps short runs of a large source together.

    A run is read at once, from an archive or over a network; a row group has many of them.
    """
    run = min(max(count // MANY, 1), RUN)
    starts = list(range(0, count, run))
    random.Random(seed).shuffle(starts)
    return [index for start in starts for index in range(start, min(start + run, count))]


def all_samples(options: PrepareOptions) -> Samples:
    source = options.source
    if source.partition(":")[0] in OFFLINE:
        return offline_samples(source, options.split)
    whole = Store.at(source)
    parent, _, name = whole.url.rpartition("/")
    above = Store(parent)
    bare = whole.url.removeprefix("s3://")
    size = above.size(name) if "/" in bare and parent else None
    if size is None:
        return folder_source(whole, source, options.kind)
    if size == 0:
        raise UserError(f"{source} is empty")
    with above.open(name) as file:
        start = file.read(4)
    suffix = Path(name).suffix.lower()
    if start[:2] == b"PK" or suffix == ".zip":
        return zip_source(above, name, source, options.kind)
    if size > MAX_LIST_BYTES:
        raise UserError(f"{source}: more than {MAX_LIST_BYTES // MIB} MiB")
    if suffix == ".json":
        where = source
        return labels_only([read_annotations("dataset.json", above.read(name), where)], source)
    if suffix in (".txt", ".csv", ".parquet"):
        return prompt_list(above.read(name), suffix, source, options.caption_column)
    raise UserError(f"{source}: not a source that is known: {KNOWN}")


def zip_source(above: Store, name: str, source: str, kind: str) -> Samples:
    members = list_zip(above, name, source)
    reader = ZipReader(above, name)

    def read(member: str) -> bytes:
        try:
            return reader.read(member, members[member])
        except UserError as error:
            raise UserError(f"{source}: {member}: {error}") from None

    return folder_samples(
        {member: tuple(place) for member, place in members.items()}, read, reader, source, kind
    )


def folder_source(store: Store, source: str, kind: str) -> Samples:
    files = store.files()
    if not files:
        if store.is_local and store.folder.is_dir():
            raise UserError(f"{source} is an empty folder")
        hint = nearest(source, OFFLINE)
        raise UserError(f"{source} does not exist; expected {KNOWN}.{hint}")
    found = folder_samples(
        dict(sorted(files.items())), store.read, FolderReader(store), source, kind
    )
    return replace(found, remote=not store.is_local)


def prompt_list(data: bytes, suffix: str, source: str, column: str) -> Samples:
    """Prompts of a .txt, a line each, or of a table's column."""
    prompts = prompts_of(data, suffix, source, column)
    return Samples("prompts", source, len(prompts), prompts=prompts)

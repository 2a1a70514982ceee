"""From an address to its samples: what kind of source it is, and what is in it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from sid_ray.data.annotations import read_annotations
from sid_ray.data.archives import ZipReader, list_zip
from sid_ray.data.folders import SUFFIXES, FolderReader, folder_samples, labels_only
from sid_ray.data.left_out import LeftOut, left_out_line
from sid_ray.data.listing import Listing
from sid_ray.data.local_files import LocalFiles, local_files
from sid_ray.data.names import HIDDEN, natural, shown_name
from sid_ray.data.offline import offline_samples
from sid_ray.data.options import MAX_LIST_BYTES, MIB, OFFLINE, PrepareOptions
from sid_ray.data.parquet_images import parquet_samples
from sid_ray.data.prompts import prompts_of
from sid_ray.data.samples import Samples, short_error
from sid_ray.data.splits import shard_split
from sid_ray.data.tars import TarReader, list_tar
from sid_ray.data.windows import Window
from sid_ray.errors import UserError, nearest
from sid_ray.storage.errors import StoreError
from sid_ray.storage.store import Store

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # packed: refused by name
MANY = 1024  # runs, at least, before that
KNOWN = ".zip, .tar, .json, .txt, .csv, .parquet, a folder, " + ", ".join(OFFLINE)


def open_samples(options: PrepareOptions) -> Samples:
    """The samples of a source, fewer where --max-images says so.

    Raises UserError in one line for a source that is missing, damaged or empty; StoreError.
    """
    try:
        samples = all_samples(options)
    except StoreError:
        raise
    except OSError as error:  # of the source: a name too long, no permission, a failing disk
        what = error.strerror or short_error(error)
        raise UserError(f"{shown_name(options.source)}: {what}") from None
    if options.kind not in ("auto", samples.kind):
        raise UserError(f"--kind {options.kind}: {options.source} holds {samples.kind}")
    if samples.count < 1:
        raise UserError(f"{options.source} is empty")
    if 0 < options.max_images < samples.count:
        drawn = random.Random(options.seed).sample(range(samples.count), options.max_images)
        samples = samples.take(sorted(drawn))
    if not options.shuffle or samples.kind == "labels":  # of labels only the histogram is read
        return samples
    return samples.take(mixed(samples.count, options.seed, samples.run))


def mixed(count: int, seed: int, most: int = 16) -> list[int]:
    """A permutation of samples that keeps short runs of a large source together.

    A run is read at once, from an archive or over a network; a row group has many of them.
    """
    run = min(max(count // MANY, 1), most)
    starts = list(range(0, count, run))
    random.Random(seed).shuffle(starts)
    return [index for start in starts for index in range(start, min(start + run, count))]


def all_samples(options: PrepareOptions) -> Samples:
    source = options.source
    if not source:
        raise UserError(f"SRC is empty; expected {KNOWN}")
    if source.partition(":")[0] in OFFLINE:
        return offline_samples(source, options.split)
    whole = Store.at(source)
    parent, _, name = whole.url.rpartition("/")
    above = Store(parent)
    size = above.size(name) if "/" in whole.path() and parent else None
    if size is None:
        return folder_source(whole, options)
    if size == 0:
        raise UserError(f"{source} is empty")
    with above.open(name) as file:
        start = file.read(512)
    suffix = Path(name).suffix.lower()
    if start[:2] == b"PK" or suffix == ".zip":
        return zip_source(above, name, options)
    if name.lower().endswith(TARS) or start[257:262] == b"ustar":
        return tar_source(above, [name], options, alone=True)
    if suffix == ".parquet" and options.kind != "prompts":
        found = parquet_samples(above, {name: size}, options, not above.is_local)
        if found is not None:
            return found
    if size > MAX_LIST_BYTES:
        raise UserError(f"{source}: more than {MAX_LIST_BYTES // MIB} MiB")
    if suffix == ".json":
        return labels_only(read_annotations("dataset.json", above.read(name), source), source)
    if suffix in (".txt", ".csv", ".parquet"):
        return prompt_list(above.read(name), suffix, source, options.caption_column)
    raise UserError(f"{source}: not a source that is known: {KNOWN}")


def zip_source(above: Store, name: str, options: PrepareOptions) -> Samples:
    members, empty = list_zip(above, name, options.source)
    files = {member: tuple(place) for member, place in members.items()}
    reader = ZipReader(Window(above, name))
    remote = not above.is_local
    return folder_samples(
        Listing(options.source, files, reader, empty=empty, remote=remote), options
    )


def tar_source(
    store: Store, shards: Sequence[str], options: PrepareOptions, alone: bool = False
) -> Samples:
    """Archives whose members are as files of one folder; those of a folder, each in its own."""
    reader, listing = TarReader(store), {}
    paths: dict[str, str] = {}
    for shard in shards:
        prefix = "" if alone else shard + "/"
        where = options.source if alone else f"{options.source}/{shown_name(shard)}"
        for member, place in list_tar(reader, shard, where).items():
            listing[prefix + member] = place
            paths[prefix + member] = ("" if alone else shard_split(shard)) + member
    remote = not store.is_local
    return folder_samples(
        Listing(options.source, listing, reader, paths, keyed=True, remote=remote), options
    )


def folder_source(store: Store, options: PrepareOptions) -> Samples:
    source = options.source
    if store.is_local:
        found = local_files(store.folder, source) if store.folder.is_dir() else LocalFiles()
    else:
        found = LocalFiles(store.files())
    if not found.files:
        if store.is_local and store.folder.is_dir():
            what = left_out_line(found.left_out.records)
            raise UserError(f"{source} is an empty folder" + (f": {what}" if what else ""))
        hint = nearest(source, OFFLINE)
        raise UserError(f"{source} does not exist; expected {KNOWN}.{hint}")
    if "manifest.json" in found.files and "part-00000.parquet" in found.files:
        raise UserError(f"{source} is a prepared set already: train from it, or name its source")
    remote = not store.is_local
    plain = [name for name in found.files if not HIDDEN.search(name)]
    endings = tuple(end for ends in SUFFIXES.values() for end in ends)
    if not any(name.lower().endswith(endings) for name in plain):
        shards = sorted((n for n in plain if n.lower().endswith(TARS)), key=natural)
        if shards:
            return tar_source(store, shards, options)
        tables = {name: found.files[name] for name in plain if name.lower().endswith(".parquet")}
        if tables and (samples := parquet_samples(store, tables, options, remote)) is not None:
            return samples
    files = dict(sorted(found.files.items()))
    listing = Listing(
        source, files, FolderReader(store), empty=found.empty, left_out=found.left_out,
        remote=remote,
    )  # fmt: skip
    return folder_samples(listing, options)


def prompt_list(data: bytes, suffix: str, source: str, column: str) -> Samples:
    """Prompts of a .txt, a line each, or of a table's column."""
    found, left_out = prompts_of(data, suffix, source, column), LeftOut()
    if found.blank:
        left_out.add(f"empty in column {shown_name(column, 60)}", "", found.blank)
    for name in found.columns:
        left_out.add("column", name)
    account = {"left_out": left_out.records} if left_out.records else {}
    return Samples("prompts", source, len(found.prompts), prompts=found.prompts, account=account)

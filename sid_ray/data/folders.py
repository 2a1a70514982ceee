"""Images or latents in a folder or an archive, with the labels and captions beside them.

Nothing is left out, reordered or taken for something else in silence: what a person should know
stands in ``Samples.account``, which ``prepare`` prints and the manifest keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sid_ray.data.annotations import Annotations, read_annotations
from sid_ray.data.classes import Classes, class_folders, count_folders, numbered, without_common
from sid_ray.data.left_out import LeftOut, left_out_line
from sid_ray.data.listing import Listing
from sid_ray.data.lists import Noted, annotations_of, column_of, note_at, places_of
from sid_ray.data.names import HIDDEN, natural, shown_name
from sid_ray.data.options import MAX_SAMPLE_BYTES, MIB, PrepareOptions
from sid_ray.data.samples import Samples
from sid_ray.data.sidecars import Beside, key_of, read_sidecars
from sid_ray.data.splits import chosen_split
from sid_ray.errors import UserError
from sid_ray.storage.store import Store

SUFFIXES = {
    "images": (
        ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff",
        ".avif", ".ppm", ".pgm",
    ),
    "latents": (".npy",),
}  # fmt: skip


@dataclass(frozen=True)
class FolderReader:
    """Reads files of a folder."""

    store: Store

    def read(self, name: str, place: Any) -> bytes:
        if place > MAX_SAMPLE_BYTES:
            raise UserError(f"{place / MIB:,.0f} MiB, at most {MAX_SAMPLE_BYTES // MIB} are taken")
        return self.store.read(name)


def folder_samples(listing: Listing, options: PrepareOptions) -> Samples:
    """Samples out of a listing, in the natural order of their names.

    Raises UserError where there are none, or where labels or captions are missing or too many.
    """
    source, left_out, said = listing.source, listing.left_out, []
    for name in [name for name in listing.files if HIDDEN.search(name)]:
        left_out.add("hidden or of a system", name)
        del listing.files[name]
    kind = kind_of(listing, options.kind)
    if kind == "labels":
        return labels_only(read_annotations(*note_at(listing, "dataset.json")), source)
    every = [name for name in listing.files if name.lower().endswith(SUFFIXES[kind])]
    if not every:
        looked = ", ".join(SUFFIXES[kind])
        raise UserError(f"{source}: no {kind} in it ({looked} are looked for){there(listing)}")
    paths, note = chosen_split(
        {name: listing.path(name) for name in every}, options.split, source, left_out
    )
    said += [note] if note else []
    names = sorted(paths, key=natural)
    check_keys(names, listing)
    pictures = set(every)
    others = [name for name in listing.files if name not in pictures]
    notes = annotations_of(listing, others, names)
    beside = read_sidecars(
        names, others, listing.read, source, left_out, listing.keyed, listing.remote,
        options.captions != "none",
    )  # fmt: skip
    prompts, prompts_from = captions_of(notes, beside, names, every, listing, options, said)
    classes = classes_of(notes, beside, names, every, paths, listing, options, said)
    used = beside.used | {noted.name for noted in notes if noted.says_something}
    left_out.add_files(name for name in others if name not in used)
    if classes.origin == "folders":
        count_folders(names, [*others, *(f"{folder}/" for folder in listing.empty)], left_out)
    return Samples(
        kind=kind,
        source=source,
        count=len(names),
        reader=listing.reader,
        names=names,
        places=[listing.files[name] for name in names],
        labels=classes.labels,
        prompts=prompts,
        label_dim=classes.label_dim,
        class_names=classes.names,
        remote=listing.remote,
        account=account_of_folders(classes.origin, prompts, prompts_from, said, left_out),
    )


def account_of_folders(
    labels_from: str,
    prompts: Sequence[str] | None,
    prompts_from: str,
    said: Sequence[str],
    left_out: LeftOut,
) -> dict[str, Any]:
    """What the manifest keeps of how a source was understood."""
    blank = sum(not prompt.strip() for prompt in prompts or ())
    captions = prompts_from + (f", {blank:,} of them empty" if blank else "")
    origin = "the folders that samples lie in" if labels_from == "folders" else labels_from
    values = {
        "labels": f"from {origin}" if origin else "",
        "captions": f"from {captions}" if captions else "",
        "notes": list(said),
        "left_out": left_out.records,
    }
    return {name: value for name, value in values.items() if value}


def kind_of(listing: Listing, asked: str) -> str:
    """images, latents or labels, by the files' suffixes."""
    if asked in SUFFIXES or asked == "labels":
        return asked
    found = {
        kind: next((name for name in listing.files if name.lower().endswith(ends)), "")
        for kind, ends in SUFFIXES.items()
    }
    source = listing.source
    if all(found.values()):
        raise UserError(
            f"{source} holds images ({shown_name(found['images'], 80)}) and latents "
            f"({shown_name(found['latents'], 80)}): --kind says which are meant"
        )
    kinds = [kind for kind, name in found.items() if name]
    if kinds:
        return kinds[0]
    if "dataset.json" in listing.files:
        return "labels"
    raise UserError(
        f"{source} holds no samples: PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF or .npy files, .tar "
        f"or .parquet shards, or dataset.json, are looked for{there(listing)}"
    )


def there(listing: Listing) -> str:
    """'; it holds 3 .heic (first a.heic)' for a source without samples."""
    listing.left_out.add_files(listing.files)
    held = left_out_line(listing.left_out.records)
    return f"; it holds {held}" if held else ""


def check_keys(names: Sequence[str], listing: Listing) -> None:
    """In shards a key is one sample: key.jpg and key.seg.png cannot both be the picture."""
    seen: dict[str, str] = {}
    for name in names if listing.keyed else ():
        other = seen.setdefault(key_of(name), name)
        if other != name:
            raise UserError(
                f"{listing.source}: {shown_name(other)} and {shown_name(name)} are of one "
                f"key: which is the "
                "picture? write shards with one a key"
            )


def captions_of(
    notes: Sequence[Noted],
    beside: Beside,
    names: Sequence[str],
    every: Sequence[str],
    listing: Listing,
    options: PrepareOptions,
    said: list[str],
) -> tuple[list[str] | None, str]:
    """[count] captions, None without any; and where they are from."""
    if options.captions == "none":
        return None, ""
    listed = column_of(notes, "prompts", names, every, listing)
    if listed is None:
        if beside.prompts is None:
            return None, ""
        return [beside.prompts[name] for name in names], beside.prompts_from
    if beside.prompts is not None:
        said.append(f"captions in {beside.prompts_from} are not used: a list has them")
    return list(listed[0].values()), listed[1]


def classes_of(
    notes: Sequence[Noted],
    beside: Beside,
    names: Sequence[str],
    every: Sequence[str],
    paths: Mapping[str, str],
    listing: Listing,
    options: PrepareOptions,
    said: list[str],
) -> Classes:
    """Classes by a list, else by files beside the samples, else by folders."""
    source, asked = listing.source, options.labels
    inner = without_common([paths[name] for name in names])
    if asked in ("folders", "none"):
        return class_folders(inner, names, source, asked, said)
    listed = column_of(notes, "labels", names, every, listing)
    if listed is not None:
        if beside.labels is not None:
            said.append(f"labels in {beside.labels_from} are not used: a list has them")
        return numbered(listed[0], places_of(notes, names), listed[1])
    if beside.labels is not None:
        values = {name: beside.labels[name] for name in names}
        places = {name: f"{source}: the label beside {shown_name(name)}" for name in names}
        return numbered(values, places, beside.labels_from)
    if any(noted.name.rsplit("/", 1)[-1] == "dataset.json" for noted in notes):
        return Classes()  # it says that there are none
    return class_folders(inner, names, source, asked, said)


def labels_only(note: Annotations, source: str) -> Samples:
    """Labels of dataset.json in the order of the files' names."""
    if not note.labels:
        raise UserError(f"{source}: no labels in it")
    values = {name: note.labels[name] for name in sorted(note.labels, key=natural)}
    classes = numbered(values, note.places or {}, note.where)
    return Samples(
        "labels",
        source,
        len(values),
        labels=classes.labels,
        label_dim=classes.label_dim,
        class_names=classes.names,
    )

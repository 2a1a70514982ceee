"""Images or latents in a folder or a zip archive, with the labels and captions beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sid_ray.data.annotations import FILES, Annotations, read_annotations
from sid_ray.data.options import MAX_CLASSES, MAX_SAMPLE_BYTES, MIB
from sid_ray.data.samples import Reader, Samples
from sid_ray.errors import UserError
from sid_ray.store import Store

SUFFIXES = {"images": (".png", ".jpg", ".jpeg", ".webp"), "latents": (".npy",)}
NUMBERED = re.compile(r"\d{5}")  # folders of EDM's archives: a thousand images each, not classes
HIDDEN = re.compile(r"(^|/)(\.|__MACOSX)")
Read = Callable[[str], bytes]


@dataclass(frozen=True)
class FolderReader:
    """Reads files of a folder."""

    store: Store

    def read(self, name: str, place: Any) -> bytes:
        if place > MAX_SAMPLE_BYTES:
            raise UserError(f"{place / MIB:,.0f} MiB, at most {MAX_SAMPLE_BYTES // MIB} are taken")
        return self.store.read(name)


def folder_samples(
    files: Mapping[str, Any], read: Read, reader: Reader, source: str, kind: str
) -> Samples:
    """Samples out of files by name (in order) with their places.

    Raises UserError where there are none, or where labels or captions are missing or too many.
    """
    files = {name: place for name, place in files.items() if not HIDDEN.search(name)}
    kind = kind_of(files, source) if kind in ("auto", "prompts") else kind
    root = root_of(files)
    notes = [
        read_annotations(name, read(root + name), f"{source}/{root}{name}")
        for name in FILES
        if root + name in files
    ]
    if kind == "labels":
        return labels_only(notes, source)
    names = [name for name in files if name.lower().endswith(SUFFIXES[kind])]
    if not names:
        raise UserError(f"{source}: no {kind} in it ({', '.join(SUFFIXES[kind])} are looked for)")
    short = [name.removeprefix(root) for name in names]
    labels = column_of(notes, "labels", short, source)
    prompts = column_of(notes, "prompts", short, source)
    class_names: tuple[str, ...] = ()
    if labels is None and f"{root}dataset.json" not in files:
        labels, class_names = class_folders(short, source)
    return Samples(
        kind=kind,
        source=source,
        count=len(names),
        reader=reader,
        names=names,
        places=[files[name] for name in names],
        labels=labels,
        prompts=prompts,
        label_dim=len(class_names) or (max(labels) + 1 if labels else 0),
        class_names=class_names,
    )


def parts(name: str) -> list[str]:
    return name.split("/")


def kind_of(files: Mapping[str, Any], source: str) -> str:
    """images, latents or labels, by the files' suffixes."""
    found = {
        kind: next((name for name in files if name.lower().endswith(ends)), "")
        for kind, ends in SUFFIXES.items()
    }
    if all(found.values()):
        raise UserError(
            f"{source} holds images ({found['images']:.80}) and latents "
            f"({found['latents']:.80}): --kind says which are meant"
        )
    kinds = [kind for kind, name in found.items() if name]
    if kinds:
        return kinds[0]
    if "dataset.json" in files:
        return "labels"
    raise UserError(
        f"{source} holds no samples: PNG, JPEG, WebP or .npy files, or dataset.json, are looked for"
    )


def root_of(files: Mapping[str, Any]) -> str:
    """'' or 'folder/', where all is in one folder that labels lie in or class folders."""
    tops = {parts(name)[0] for name in files}
    if len(tops) != 1 or any("/" not in name for name in files):
        return ""
    top = tops.pop() + "/"
    deeper = all("/" in name.removeprefix(top) for name in files)
    return top if deeper or any(top + name in files for name in FILES) else ""


def column_of(
    notes: Sequence[Annotations], what: str, names: Sequence[str], source: str
) -> list[Any] | None:
    """[count] labels or prompts of the first file that has them, None without one.

    Raises UserError for a sample without one, and for one that is not there.
    """
    for note in notes:
        values = getattr(note, what)
        if values is None:
            continue
        known = set(names)
        missing = next((name for name in values if name not in known), None)
        if missing is not None:
            raise UserError(f"{note.where} lists {missing!a:.200}, which is not in {source}")
        for index, name in enumerate(names):
            if name not in values:
                raise UserError(
                    f"{source}: {name:.200} (sample {index}) is not listed in {note.where}, "
                    "though others are"
                )
        return [values[name] for name in names]
    return None


def class_folders(names: Sequence[str], source: str) -> tuple[list[int] | None, tuple[str, ...]]:
    """([count] classes, their names) by the first folder of each name; none without folders."""
    tops = [parts(name)[0] if "/" in name else "" for name in names]
    classes = sorted(set(tops))
    if classes == [""] or all(NUMBERED.fullmatch(name) for name in classes) or len(classes) == 1:
        return None, ()
    if "" in classes:
        index = tops.index("")
        raise UserError(
            f"{source}: {names[index]:.200} (sample {index}) is in no class folder, though "
            f"others are in {classes[1]:.80}/: move it, or list labels in labels.csv"
        )
    if len(classes) > MAX_CLASSES:
        raise UserError(f"{source}: {len(classes):,} class folders, at most {MAX_CLASSES:,}")
    numbers = {name: number for number, name in enumerate(classes)}
    return [numbers[top] for top in tops], tuple(classes)


def labels_only(notes: Sequence[Annotations], source: str) -> Samples:
    """Labels of dataset.json in the order of the files' names."""
    labels = next((note.labels for note in notes if note.labels), None)
    if labels is None:
        raise UserError(f"{source}: no labels in it")
    values = [labels[name] for name in sorted(labels)]
    return Samples("labels", source, len(values), labels=values, label_dim=max(values) + 1)

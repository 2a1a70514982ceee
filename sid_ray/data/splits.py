"""Parts of a source that are kept apart on purpose: train/, test/, val/ are no classes.

They are recognised where the folders of a level are called so, or the files of a set of shards
(train-00000-of-00002.parquet). One of them is taken (``--split train``), or all (``--split all``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sid_ray.data.left_out import LeftOut
from sid_ray.data.names import shown_name
from sid_ray.errors import UserError

KINDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "eval", "evaluation", "dev"),
    "test": ("test", "testing", "tst"),
}
KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}
WORDS = "|".join(sorted(KIND_OF, key=len, reverse=True))
# train, train2017, training_set, test-images, images_train; of two domains, trainA and trainB
FOLDER = re.compile(
    rf"(?:(?:images?|imgs?|data|split)[ _-]?)?({WORDS})"
    r"(?:[ _-]?(?:set|data|dataset|split|images?|imgs?|[0-9]{2,4}))*[ _-]?([AB]?)",
    re.I,
)
IN_NAME = re.compile(rf"(?:^|[^a-zA-Z])({WORDS})(?:[^a-zA-Z]|$)", re.I)
PART = re.compile(r"(.*?)([0-9]{5})(-of-([0-9]{5}).*)")  # train-00000-of-00002.parquet
ALL = "all"


class Split(NamedTuple):
    """What a folder's name says: its kind, and the domain behind it ('' for none)."""

    kind: str
    domain: str


def split_of(folder: str) -> Split | None:
    match = FOLDER.fullmatch(folder)
    return Split(KIND_OF[match[1].lower()], match[2]) if match else None


def shard_split(shard: str) -> str:
    """The folder that stands for a shard's part: 'train/', or '' where its name says nothing."""
    *folders, base = shard.split("/")
    for folder in folders:
        found = split_of(folder)
        if found:
            return f"{found.kind}/"
    match = IN_NAME.search(base)
    return f"{KIND_OF[match[1].lower()]}/" if match else ""


def missing_of(files: Sequence[str]) -> str:
    """A note of shards that say how many they are and are fewer; '' for none."""
    found: dict[tuple[str, str, int], int] = {}
    for match in filter(None, map(PART.fullmatch, files)):
        key = (match[1], match[3], int(match[4]))
        found[key] = found.get(key, 0) + 1
    told = [
        f"{there} of {total} files {shown_name(f'{start}*{end}', 80)} are there"
        for (start, end, total), there in found.items()
        if there < total
    ]
    return "; ".join(told[:4])


def split_level(folders: Sequence[Sequence[str]]) -> int | None:
    """At which level the folders of samples are splits, None for none.

    ``folders``: of each sample. At the first level where they differ two of them are enough: what
    lies beside train/ and test/ is no class either. Deeper down (cat/train, dog/train) all must be.
    """
    distinct = {tuple(each) for each in folders}
    depth = max(map(len, distinct), default=0)
    level = 0
    while level < depth and len({each[level : level + 1] for each in distinct}) == 1:
        level += 1
    for number in range(level, depth):
        names = {each[number] if number < len(each) else "" for each in distinct}
        found = {name: split_of(name) for name in names}
        kinds = {split.kind for split in found.values() if split}
        if len(kinds) > 1 and (number == level or all(found.values())):
            return number
    return None


def named_level(folders: Sequence[Sequence[str]], asked: str) -> int | None:
    """At which level some samples, but not all, lie in the part that was asked for by name."""
    for level in range(max(map(len, folders), default=0)):
        inside = [takes(asked, each[level]) if level < len(each) else False for each in folders]
        if any(inside):
            return None if all(inside) else level
    return None


def mixed_in(folders: Sequence[Sequence[str]]) -> str:
    """A note of folders called as parts are, which are taken for classes or within some; or ''."""
    every = {tuple(each) for each in folders}
    for level in range(max(map(len, every), default=0)):
        names = {each[level] if level < len(each) else "" for each in every}
        found = sorted(name for name in names if split_of(name))
        if found and len(names) > 1:
            listed = ", ".join(shown_name(name, 40) for name in found[:4])
            return f"{listed}: not taken for a part of the set; --split {found[0]} takes it alone"
    return ""


def chosen_split(
    paths: Mapping[str, str], asked: str, source: str, left_out: LeftOut
) -> tuple[dict[str, str], str]:
    """The samples of the split that was asked for, by name, with their paths without it; a note.

    ``paths``: of each sample in its source. Raises UserError where one must be named, or where
    there is none of that name.
    """
    folders = {name: path.split("/")[:-1] for name, path in paths.items()}
    level = split_level(list(folders.values()))
    if level is None and asked not in ("", ALL):
        level = named_level(list(folders.values()), asked)
    if level is None:
        return named_alone(paths, folders, asked, source)
    at = {name: (parts[level] if level < len(parts) else "") for name, parts in folders.items()}
    counts = Counter(at.values())
    listed = ", ".join(
        f"{shown_name(folder, 40)} ({counts[folder]:,})" for folder in sorted(counts) if folder
    )
    if not asked:
        first = next((s.kind for s in map(split_of, sorted(counts)) if s and s.kind == "train"), "")
        raise UserError(
            f"{source} is split: {listed}: --split {first or next(filter(split_of, counts))} takes "
            f"one part, --split {ALL} all of them as one set"
        )
    taken = {folder for folder in counts if takes(asked, folder)}
    if not taken:
        raise UserError(f"--split {asked}: {source} has {listed}, or {ALL}")
    found = {}
    for name, path in paths.items():
        if at[name] not in taken:
            left_out.add("in other splits", name)
            continue
        split, parts = split_of(at[name]), path.split("/")
        parts[level : level + 1] = [split.domain] if split and split.domain else []
        found[name] = "/".join(parts)
    return found, f"split {asked}: {', '.join(sorted(taken))} out of {listed}"


def takes(asked: str, folder: str) -> bool:
    """Whether --split means this folder: by its own name, by its kind, or as one of all."""
    split = split_of(folder)
    if folder == asked:
        return bool(folder)
    return split is not None and (asked == ALL or KIND_OF.get(asked.lower()) == split.kind)


def named_alone(
    paths: Mapping[str, str], folders: Mapping[str, Sequence[str]], asked: str, source: str
) -> tuple[dict[str, str], str]:
    """Where nothing is split: all, or those that lie in a folder of the name that was asked for."""
    if not asked or asked == ALL:
        return dict(paths), "" if asked else mixed_in(list(folders.values()))
    inside = {
        name: path
        for name, path in paths.items()
        if any(takes(asked, folder) for folder in folders[name])
    }
    if len(inside) != len(paths):
        raise UserError(f"--split {asked}: {source} has no such parts: leave it out")
    return inside, f"split {asked}: there is no other"

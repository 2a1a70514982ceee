"""Classes of samples: numbers or names that stand in files, or the folders that samples lie in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sid_ray.data.left_out import LeftOut
from sid_ray.data.names import NUMBER, in_natural_order, same_text, shown_name
from sid_ray.data.options import MAX_CLASSES
from sid_ray.data.samples import checked_label
from sid_ray.errors import UserError

SHARDS = re.compile(r"\d{5}")  # folders of EDM's archives: a thousand images each
CAMERA = re.compile(r"\d{3}[A-Z0-9_]{5}", re.IGNORECASE)  # 100CANON, 101MSDCF, 100APPLE
WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


class Classes(NamedTuple):
    """``labels`` [count], or None; ``names`` [label_dim], or empty; where they are from."""

    labels: list[int] | None = None
    label_dim: int = 0
    names: tuple[str, ...] = ()
    origin: str = ""


def numbered(values: Mapping[str, Any], places: Mapping[str, str], origin: str) -> Classes:
    """Classes of labels that are all numbers, or all names.

    Args:
        values: label of each sample, in order. places: where each stands, for messages.

    Raises UserError for numbers among names, and for what is neither.
    """
    kinds: dict[str, str] = {}  # number or name -> a sample that has it
    numbers: list[Any] = []
    for name, value in values.items():
        is_name = isinstance(value, str) and not WHOLE.fullmatch(value)
        kinds.setdefault("name" if is_name else "number", name)
        numbers.append(value if is_name or not isinstance(value, str) else int(value))
    if "name" not in kinds:
        labels = [
            checked_label(value, places[name]) for name, value in zip(values, numbers, strict=True)
        ]
        return Classes(labels, max(labels) + 1, (), origin)
    odd = kinds["name"]
    if "number" in kinds or NUMBER.fullmatch(values[odd]):
        also = f": others have numbers ({places[kinds['number']]})" if "number" in kinds else ""
        label = shown_name(str(values[odd]), 40)
        raise UserError(f"{places[odd]}: label {label!r} is not a whole number from 0{also}")
    names = distinct(values.values(), places[odd])
    index = {name: number for number, name in enumerate(names)}
    return Classes([index[value] for value in values.values()], len(names), names, origin)


def distinct(values: Any, where: str) -> tuple[str, ...]:
    """Class names in their order. Raises UserError for two that look the same, and for many."""
    names = in_natural_order(set(values))
    if len(names) > MAX_CLASSES:
        raise UserError(f"{where}: {len(names):,} classes, at most {MAX_CLASSES:,}")
    looks: dict[str, str] = {}
    for name in names:
        twin = looks.setdefault(same_text(name), name)
        if twin != name:
            raise UserError(
                f"{where}: two classes are called {shown_name(name, 80)!r}, with accents "
                f"stored in two "
                "ways: make them one"
            )
    return tuple(names)


def class_folders(
    paths: Sequence[str], names: Sequence[str], source: str, asked: str, notes: list[str]
) -> Classes:
    """Classes by the first folder in which samples differ; none without folders.

    Args:
        paths: of samples, without the folders that all of them lie in. names: of their files.
        asked: --labels; folders takes those of cameras and of EDM's archives, too.
    """
    tops = [path.split("/")[0] if "/" in path else "" for path in paths]
    found = set(tops)
    if len(found) == 1 or asked == "none":
        return Classes()
    kinds = (("five digits, as in EDM's archives", SHARDS), ("cameras", CAMERA))
    for what, pattern in kinds if asked != "folders" else ():
        if all(pattern.fullmatch(top) for top in found):
            notes.append(
                f"{len(found):,} folders ({what}) are not taken as classes: --labels folders does"
            )
            return Classes()
    if "" in found:
        index = tops.index("")
        other = shown_name(min(found - {""}), 80)
        raise UserError(
            f"{source}: {shown_name(names[index])} (sample {index}) is in no class folder, though "
            f"others are in {other}/: move it, list labels in labels.csv, or give --labels none"
        )
    classes = distinct(found, source)
    numbers = {name: number for number, name in enumerate(classes)}
    return Classes([numbers[top] for top in tops], len(classes), classes, "folders")


def without_common(paths: Sequence[str]) -> list[str]:
    """Paths of samples behind the folders that all of them lie in."""
    folders = [path.split("/")[:-1] for path in paths]
    first, last = min(folders), max(folders)
    level = 0
    while level < min(len(first), len(last)) and first[level] == last[level]:
        level += 1
    return ["/".join(path.split("/")[level:]) for path in paths]


def folders_above(name: str) -> list[str]:
    """'a' and 'a/b' of 'a/b/c.png', and the top ''."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[:count]) for count in range(len(parts) + 1)]


def count_folders(names: Iterable[str], others: Iterable[str], left_out: LeftOut) -> None:
    """Folders without a sample beside those with some: they are no classes, and named as such.

    Args:
        names: of samples. others: of other files, and of empty folders with a slash at the end.
    """
    holding = {folder for name in names for folder in folders_above(name)}
    lonely = {folder for name in others for folder in folders_above(name)} - holding
    for folder in sorted(lonely):
        if folder.rpartition("/")[0] in holding:
            left_out.add("folder without samples", folder + "/")

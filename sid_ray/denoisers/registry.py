"""All families by name: those in files of families/, of entry points, and added by a call.

A package adds families by entry points of the group ``sid_ray.families``, each a ``Family`` object
under its name, so that every process finds them, Ray's workers too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sid_ray.config.registry import Registry
from sid_ray.denoisers.family import Family
from sid_ray.denoisers.foreign import class_in_words
from sid_ray.denoisers.latents import LatentConvention
from sid_ray.denoisers.noise import Noise
from sid_ray.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from sid_ray.denoisers.single_file import SingleFile

FAMILIES: Registry[Family] = Registry(
    "network family", "sid_ray.families", "sid_ray.denoisers.families"
)


def register_family(family: Family) -> None:
    """Adds a family in this process. Raises UserError where another one has its name."""
    FAMILIES.register(family)


def families() -> Mapping[str, Family]:
    """Every family by name. Raises UserError where a package's cannot be loaded."""
    return {name: family_of(name) for name in FAMILIES.names}


def family_of(name: str) -> Family:
    """A family by name. Raises UserError for an unknown one, or one that cannot be loaded."""
    found = FAMILIES.get(name)
    if not isinstance(found, Family):
        raise UserError(f"network family {name!r} is {found!r:.80}; expected an object of Family")
    return found


def noises() -> dict[str, Noise]:
    """Every kind of noise levels by its name in schedule.kind."""
    return {family.noise.kind: family.noise for family in families().values()}


def noise_of(kind: str) -> Noise:
    """A kind of noise levels. Raises UserError for an unknown one."""
    known = noises()
    if kind not in known:
        raise UserError(
            f"schedule.kind is {kind!r}; known: {', '.join(known)}.{nearest(kind, known)}"
        )
    return known[kind]


def conventions() -> dict[str, LatentConvention]:
    """Every way to use an auto-encoder by its name."""
    found = [family.latents for family in families().values() if family.latents is not None]
    return {convention.name: convention for convention in found}


def convention_of(name: str) -> LatentConvention:
    """A way to use an auto-encoder. Raises UserError for an unknown one."""
    known = conventions()
    if name not in known:
        raise UserError(
            f"unknown convention of latents {name!r}; known: {', '.join(known)}."
            f"{nearest(name, known)}"
        )
    return known[name]


def network_folders() -> tuple[str, ...]:
    """The parts of pipelines' folders that hold networks."""
    return tuple(dict.fromkeys(f.folder for f in families().values() if f.folder))


def pipeline_parts() -> tuple[str, ...]:
    """The parts of pipelines' folders that are read, the networks first."""
    parts = [part for family in families().values() for part in family.parts]
    return tuple(dict.fromkeys((*network_folders(), *parts)))


def text_parts() -> tuple[str, ...]:
    """The parts of pipelines' folders that embed prompts, of all families."""
    return tuple(dict.fromkeys(part for f in families().values() for part in f.text_parts))


def family_of_text(folder: Path) -> Family:
    """The family that reads the text encoders in a folder, by their classes. Raises UserError.

    A folder may lack encoders but the first, and holds none that the family does not know: of
    several families the one that misses fewest.
    """
    found = encoder_classes(folder)
    fitting = [
        family
        for family in families().values()
        if "text_encoder" in found
        and all(name in family.text_classes.get(part, ()) for part, name in found.items())
    ]
    if fitting:
        return min(fitting, key=lambda family: len(family.text_classes))
    said = ", ".join(f"{part} {name}" for part, name in found.items()) or "none"
    raise UserError(f"no family of networks reads the text encoders in {folder}: {said}")


def encoder_classes(folder: Path) -> dict[str, str]:
    """Part -> class of the text encoders in a folder, also where it is one itself."""
    from sid_ray.denoisers.component import class_in, component_of
    from sid_ray.denoisers.text_identity import encoders_among
    from sid_ray.tensor_files.tensors import json_object

    first, *others = encoders_among(text_parts())
    places = {first: component_of(folder, first)} | {part: folder / part for part in others}
    configs = {part: path / "config.json" for part, path in places.items()}
    return {part: class_in(json_object(p)) for part, p in configs.items() if p.is_file()}


def from_official(class_name: str, recorded: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(family, arguments) of a network that an official file records; nothing is built.

    ``class_name`` and ``recorded`` are the class and keyword arguments of the outermost network:
    EDMPrecond and the like. Every argument is in the result, also where the file left it to a
    default. Raises UserError that names a class or argument not known, or out of range.
    """
    for family in families().values():
        if family.takes(class_name, recorded):
            return family.name, family.from_official(class_name, recorded)
    classes = [name for family in families().values() for name in family.official_classes]
    known = tuple(dict.fromkeys(classes))
    if class_name not in known and (words := class_in_words(class_name)):
        raise UserError(f"{class_name} {words}")
    raise UserError(
        f"unknown network class {class_name!r}; known: {', '.join(known)}."
        f"{nearest(class_name, known)}"
    )


def single_file_names() -> tuple[str, ...]:
    """What names of tensors begin with in files that hold a whole pipeline."""
    return tuple(dict.fromkeys(f.single_file for f in families().values() if f.single_file))


def from_single_file(tensors: Mapping[str, Tensor], prediction_type: str) -> SingleFile | None:
    """A pipeline in one file, taken apart by the family that knows it; None for any other file.

    Raises UserError.
    """
    for family in families().values():
        if family.single_file and any(name.startswith(family.single_file) for name in tensors):
            found = family.from_single_file(tensors, prediction_type)
            if found is not None:
                return found
    return None


def named_arguments(class_name: str, given: list, named: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that a file records by place under their names. Raises UserError for too many."""
    names: tuple[str, ...] = ()
    for family in families().values():
        names = names or family.by_place.get(class_name, ())
    if len(given) > len(names):
        raise UserError(f"{class_name} was made with arguments by place, which have no names here")
    return dict(zip(names, given, strict=False)) | dict(named)
